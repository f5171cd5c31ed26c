"""The command `python -m glue_runs.push`."""

import sys

from .finetune.push import main

if __name__ == "__main__":
    sys.exit(main())
