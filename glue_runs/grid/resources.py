"""How many runs fit on this machine at once."""

from __future__ import annotations

from collections.abc import Sequence

import joblib
import psutil
import torch

from ..finetune.arguments import parse
from ..finetune.encoder import load_model
from ..tasks.glue import get_task
from .plan import GridArguments, Run

_BYTES_OF_A_PROCESS = 2**30
_BYTES_PER_PARAMETER = 32
"""Weights, gradients and the two moments of Adam in float32, and as much again for the activations."""


def share_of_machine(grid: GridArguments, runs: Sequence[Run]) -> tuple[int, int | None]:
    """How many of these runs to do at once, and with how many threads each; None: as PyTorch has it."""
    workers = _most_at_once(runs, cpus=grid.cpus_per_run or 1) if grid.workers == "auto" else int(grid.workers)
    if grid.cpus_per_run is not None or workers == 1:
        return workers, grid.cpus_per_run
    return workers, max(1, joblib.cpu_count() // workers)


def _most_at_once(runs: Sequence[Run], cpus: int) -> int:
    at_once = joblib.cpu_count() // cpus
    if at_once < 2 or not runs:
        return 1
    if torch.accelerator.is_available() and not all(parse(run.argv())[2].use_cpu for run in runs):
        return 1
    return int(max(1, min(at_once, psutil.virtual_memory().available // _bytes_of_a_run(runs))))


def _bytes_of_a_run(runs: Sequence[Run]) -> int:
    """Memory that the run with the largest model takes, roughly."""
    tasks = {run.model: run.task for run in runs}
    models = (load_model(model, get_task(task)) for model, task in tasks.items())
    largest = max(sum(weight.numel() for weight in model.parameters()) for model in models)
    return _BYTES_OF_A_PROCESS + _BYTES_PER_PARAMETER * largest
