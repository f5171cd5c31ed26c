"""Where the runs of a grid are done: in this process, one after another, or as tasks of a Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tqdm import tqdm

from ..analysis.store import ERROR_NAME, GridFolder
from ..errors import InputError
from .execution import attempt
from .plan import GridArguments, Run
from .progress import quiet_libraries

_TIDY_EVERY = 20  # times as long as tidying takes


class Engine(Protocol):
    """Does runs."""

    def work(self, folder: GridFolder, runs: list[Run], measured: str) -> Iterator[str | None]:
        """Do the runs, in an order of its own; as each ends, a line on how it went, None if it was left alone."""


def choose_engine(grid: GridArguments) -> Engine:
    """The engine that the arguments name.

    Raises:
        InputError: Ray is not installed, its cluster cannot be reached, or has not what a run asks for.
    """
    if grid.engine == "local":
        return LocalEngine(grid.cpus_per_run)
    return RayEngine(grid.ray_address, grid.cpus_per_run or 1, grid.gpus_per_run, grid.max_retries)


def work(engine: Engine, folder: GridFolder, runs: dict[str, Run], measured: str, keep_models: str) -> None:
    """Do all runs that are not done and that no other process is doing.

    Args:
        engine: where.
        folder: where they go.
        runs: by name, in order.
        measured: activations whose entropy the baseline logs.
        keep_models: as `GridFolder.prune` takes it.
    """
    todo = [run for name, run in runs.items() if folder.state(name) != "done"]
    tidy_again = 0.0
    with tqdm(total=len(runs), initial=len(runs) - len(todo), desc="grid", disable=None) as bar:
        for line in engine.work(folder, todo, measured):
            if line is not None:
                tqdm.write(line)
            bar.update()
            if time.monotonic() > tidy_again:  # it reads all results, which on a large grid takes longer than a run
                begun = time.monotonic()
                folder.prune(keep_models)
                tidy_again = begun + _TIDY_EVERY * (time.monotonic() - begun)
    folder.prune(keep_models)


@dataclass(frozen=True)
class LocalEngine:
    """One run after another, in this process."""

    threads: int | None = None  # None: as many as PyTorch takes

    def work(self, folder: GridFolder, runs: list[Run], measured: str) -> Iterator[str | None]:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        started = time.time()
        for run in runs:
            yield attempt(folder, run, measured, started)


class RayEngine:
    """Every run a Ray task, as many at once as the cluster has CPUs and GPUs for.

    A worker that dies, whether killed or out of memory, is replaced by Ray, and the run goes on from its own last
    checkpoint. Workers need the folder of the grid, and whatever else the arguments name, under the same path.

    Args:
        address: of a cluster that is up, as `ray.init` takes it; None: Ray is started here, and ends with the grid.
        cpus: of a run, which computes with as many threads.
        gpus: of a run, at most 1; None: one if there is one.
        max_retries: how often a run whose worker died is begun again.
    """

    def __init__(self, address: str | None, cpus: int, gpus: float | None, max_retries: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:  # keeps Ray on 127.0.0.1, whatever the system; read when it is imported
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise InputError("--engine ray needs Ray: pip install 'lbe-hf[ray]'.") from None
        self._ray = ray
        here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
        here["_node_ip_address"] = "127.0.0.1"
        try:
            ray.init(address or "local", log_to_driver=False, logging_level="error", **({} if address else here))
        except ConnectionError as error:
            raise InputError(f"--ray_address {address} does not answer ({str(error).splitlines()[0]}).") from error
        offered = ray.cluster_resources()
        self.cpus, self.gpus = cpus, min(1.0, offered.get("GPU", 0.0)) if gpus is None else gpus
        self.max_retries = max_retries
        largest = {kind: max(node["Resources"].get(kind, 0.0) for node in ray.nodes()) for kind in ("CPU", "GPU")}
        for kind, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > largest[kind]:
                ray.shutdown()
                raise InputError(
                    f"--{kind.lower()}s_per_run asks for {wanted:g}, but no machine of the cluster has more than "
                    f"{largest[kind]:g}: ask for less."
                )

    def work(self, folder: GridFolder, runs: list[Run], measured: str) -> Iterator[str | None]:
        ray, started = self._ray, time.time()
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.max_retries)(_attempt_in_worker)
        folder = GridFolder(folder.path.resolve())
        try:
            waiting = {task.remote(folder, run, measured, started, os.getcwd(), self.cpus): run for run in runs}
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                run = waiting.pop(ended)
                try:
                    yield ray.get(ended)
                except ray.exceptions.RayError as error:  # after the last retry
                    yield _give_up(folder, run, str(error))
        finally:
            ray.shutdown()


def _attempt_in_worker(
    folder: GridFolder, run: Run, measured: str, since: float, directory: str, threads: int
) -> str | None:
    os.chdir(directory)  # which relative paths in the arguments start from
    torch.set_num_threads(threads)
    quiet_libraries()
    # The loaders of a worker that died hold on to its lock for some seconds.
    return attempt(folder, run, measured, since, patience=10)


def _give_up(folder: GridFolder, run: Run, reason: str) -> str:
    path = folder.run_dir(run.name)
    with folder.lock(run.name):
        path.mkdir(exist_ok=True)
        (path / ERROR_NAME).write_text(reason, encoding="utf-8")
    return f"{run.name}: failed: {reason.splitlines()[0]}"
