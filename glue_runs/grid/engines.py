"""Where and how the runs are executed: in this process, in several local ones, or on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from tqdm import tqdm

from ..analysis.store import GridFolder
from ..errors import InputError
from .arguments import GridArguments
from .execution import AFTER_A_DEATH, Seen, abandon, attempt, see
from .gpus import VISIBLE, gpus_for
from .plan import Run
from .progress import quiet_libraries
from .ray_engine import RayEngine
from .resources import share_of_machine
from .workers import do_in_workers

_PRUNE_EVERY = 20  # times as long as pruning takes


class Engine(Protocol):
    """Where and how the runs are executed."""

    def work(self, folder: GridFolder, runs: list[Run]) -> Generator[str | None]:
        """Do the runs, in any order; yield a line on the result of each as it ends, or None if it was left alone."""


def choose_engine(grid: GridArguments, runs: Sequence[Run]) -> Engine:
    """The engine that the arguments name, for all runs of the grid, done or not.

    Raises:
        InputError: Ray is not installed, or its cluster does not answer or lacks the CPUs or GPUs that a run asks for.
    """
    if grid.engine == "local":
        gpus = gpus_for(runs)
        workers, threads = share_of_machine(grid, runs, len(gpus))
        return LocalEngine(workers, threads, grid.max_retries, gpus)
    return RayEngine(grid.ray_address, grid.cpus_per_run or 1, grid.gpus_per_run, grid.max_retries)


def work(engine: Engine, folder: GridFolder, runs: dict[str, Run], keep_models: str) -> None:
    """Do all runs that are not done and that no other process is doing.

    Args:
        engine: executes the runs.
        folder: receives their files.
        runs: by name, in order.
        keep_models: as for `GridFolder.prune`.
    """
    todo = [run for name, run in runs.items() if folder.state(name) != "done"]
    prune_again = 0.0
    with (
        tqdm(total=len(runs), initial=len(runs) - len(todo), desc="grid", disable=None) as bar,
        closing(engine.work(folder, todo)) as lines,
    ):
        for line in lines:
            if line is not None:
                tqdm.write(line)
            bar.update()
            # Pruning reads all results, which takes longer than a run on a large grid.
            if time.monotonic() > prune_again:
                begun = time.monotonic()
                _prune(folder, keep_models, runs)
                prune_again = begun + _PRUNE_EVERY * (time.monotonic() - begun)
    _prune(folder, keep_models, runs)


def _prune(folder: GridFolder, keep_models: str, runs: Collection[str]) -> None:
    try:
        folder.prune(keep_models, runs)
    except (InputError, OSError) as error:  # the other runs continue
        tqdm.write(f"Nothing was pruned: {error}")


@dataclass(frozen=True)
class LocalEngine:
    """Runs on this machine: in processes of their own, or one after another on the CPU in this process.

    A process that dies, whether killed or out of memory, is replaced, and its run resumes from its last checkpoint.

    Args:
        workers: how many runs at once; 1, without GPUs: in this process.
        threads: number of threads of each run; None, only with one worker: as many as PyTorch takes.
        max_retries: how often a run is resumed after its process died.
        gpus: the GPUs of the processes, in turn.
    """

    workers: int = 1
    threads: int | None = None
    max_retries: int = 3
    gpus: Sequence[str] = ()

    def work(self, folder: GridFolder, runs: list[Run]) -> Generator[str | None]:
        seen = {run.name: see(folder, run.name) for run in runs}
        if self.workers == 1 and not self.gpus:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            for run in runs:
                yield attempt(folder, run, seen[run.name])
        else:
            yield from do_in_workers(
                partial(_attempt_here, folder, seen),
                partial(abandon, folder, reason="Its process died: killed, or out of memory."),
                runs,
                workers=self.workers,
                threads=self.threads or torch.get_num_threads(),
                max_retries=self.max_retries,
                initializer=quiet_libraries,
                environments=[{VISIBLE: gpu} for gpu in self.gpus] or [{}],
            )


def _attempt_here(folder: GridFolder, seen: dict[str, Seen], run: Run, deaths: int) -> str | None:
    return attempt(folder, run, seen[run.name], patience=AFTER_A_DEATH if deaths else 1)
