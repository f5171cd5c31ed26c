"""One fine-tuning run: `python -m glue_runs.finetune --help`."""
