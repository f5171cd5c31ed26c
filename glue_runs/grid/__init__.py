"""Many fine-tuning runs: `python -m glue_runs.grid --help`."""
