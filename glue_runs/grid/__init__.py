"""Many runs: `python -m glue_runs.grid --help`."""
