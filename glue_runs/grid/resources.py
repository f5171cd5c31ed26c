"""Determines how many runs fit on this machine at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import joblib
import psutil
import torch

from ..finetune.arguments import parse
from ..finetune.encoder import load_model
from ..tasks.glue import get_task
from .arguments import GridArguments
from .plan import Run

_BYTES_OF_A_PROCESS = 2**30
_BYTES_PER_PARAMETER = 32
"""Weights, gradients and the two moments of Adam in float32, and the same again for the activations."""


_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def share_of_machine(grid: GridArguments, runs: Sequence[Run], gpus: int = 0) -> tuple[int, int | None]:
    """How many runs to do at once, and the number of threads of each; None: as many as PyTorch takes.

    Args:
        grid: its `workers` and `cpus_per_run` override the automatic choice.
        runs: all of the grid, done or not, so that those of a resumed grid have as many threads as before.
        gpus: number of GPUs, each of which does one run at a time unless `workers` says otherwise.
    """
    automatic = min(gpus, len(runs)) if gpus else _most_at_once(runs, cpus=grid.cpus_per_run or 1)
    workers = automatic if grid.workers == "auto" else int(grid.workers)
    if grid.cpus_per_run is not None or workers == 1:
        return workers, grid.cpus_per_run
    return workers, max(1, joblib.cpu_count() // workers)


def _most_at_once(runs: Sequence[Run], cpus: int) -> int:
    at_once = min(joblib.cpu_count() // cpus, len(runs))
    if at_once < 2:
        return 1
    if torch.accelerator.is_available() and not all(parse(run.argv())[2].use_cpu for run in runs):
        return 1
    return int(max(1, min(at_once, _available_bytes() // _bytes_of_a_run(runs))))


def _available_bytes() -> int:
    """Available memory, at most the limit of the container."""
    available = int(psutil.virtual_memory().available)
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else ""
    return min(available, int(limit)) if limit.isdecimal() else available


def _bytes_of_a_run(runs: Sequence[Run]) -> int:
    """Approximate memory of the run with the largest model."""
    tasks = {run.model: run.task for run in runs}
    models = (load_model(model, get_task(task)) for model, task in tasks.items())
    largest = max(sum(weight.numel() for weight in model.parameters()) for model in models)
    return _BYTES_OF_A_PROCESS + _BYTES_PER_PARAMETER * largest
