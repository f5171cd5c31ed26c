"""Which GPU each process of a grid sees: one only, because with several `Trainer` would train with DataParallel."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from ..finetune.arguments import parse
from .plan import Run

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus_for(runs: Sequence[Run]) -> tuple[str, ...]:
    """Numbers or identifiers of the GPUs that this process sees; none if all runs use the CPU."""
    count = torch.cuda.device_count()
    if count == 0 or all(parse(run.argv())[2].use_cpu for run in runs):
        return ()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return tuple(named[:count] or map(str, range(count)))
