"""One run: `python -m glue_runs.finetune --help`."""
