"""The command `python -m glue_runs.finetune`."""

import sys

from .command import main

sys.exit(main())
