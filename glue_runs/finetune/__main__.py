"""The command `python -m glue_runs.finetune`."""

import sys

from .run import main

sys.exit(main())
