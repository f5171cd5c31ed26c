"""The command `python -m glue_runs.report`."""

import sys

from .analysis.report import main

if __name__ == "__main__":
    sys.exit(main())
