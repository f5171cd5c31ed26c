"""The command `python -m glue_runs.grid`."""

import sys

from .command import main

sys.exit(main())
