"""Where the runs of a grid are done: in this process, in several of this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from tqdm import tqdm

from ..analysis.store import GridFolder
from ..errors import InputError
from .execution import AFTER_A_DEATH, Seen, abandon, attempt, see
from .plan import GridArguments, Run
from .progress import quiet_libraries
from .resources import share_of_machine
from .workers import do_in_workers

_PRUNE_EVERY = 20  # times as long as tidying takes
_PATIENCE = 20  # seconds for an address to answer
_PATIENCE_TO_JOIN = 60  # seconds for a cluster to take a process in, which on a shared file system is slow


class Engine(Protocol):
    """Does runs."""

    def work(self, folder: GridFolder, runs: list[Run]) -> Generator[str | None]:
        """Do the runs, in an order of its own; as each ends, a line on how it went, None if it was left alone."""


def choose_engine(grid: GridArguments, runs: Sequence[Run]) -> Engine:
    """The engine that the arguments name, for runs of which some may be done.

    Raises:
        InputError: Ray is not installed, its cluster cannot be reached, or has not what a run asks for.
    """
    if grid.engine == "local":
        workers, threads = share_of_machine(grid, runs)
        return LocalEngine(workers, threads, grid.max_retries)
    return RayEngine(grid.ray_address, grid.cpus_per_run or 1, grid.gpus_per_run, grid.max_retries)


def work(engine: Engine, folder: GridFolder, runs: dict[str, Run], keep_models: str) -> None:
    """Do all runs that are not done and that no other process is doing.

    Args:
        engine: where.
        folder: where they go.
        runs: by name, in order.
        keep_models: as `GridFolder.prune` takes it.
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
            if time.monotonic() > prune_again:  # it reads all results, which on a large grid takes longer than a run
                begun = time.monotonic()
                _prune(folder, keep_models)
                prune_again = begun + _PRUNE_EVERY * (time.monotonic() - begun)
    _prune(folder, keep_models)


def _prune(folder: GridFolder, keep_models: str) -> None:
    try:
        folder.prune(keep_models)
    except (InputError, OSError) as error:  # no reason to end the other runs
        tqdm.write(f"Nothing was pruned: {error}")


@dataclass(frozen=True)
class LocalEngine:
    """Runs on this machine: one after another in this process, or several at once in processes of their own.

    A process that dies, whether killed or out of memory, is replaced, and its run resumes from its own last
    checkpoint.

    Args:
        workers: how many runs at once; 1: in this process.
        threads: with which each computes; None, only for one: as many as PyTorch takes.
        max_retries: how often a run whose process died is begun again.
    """

    workers: int = 1
    threads: int | None = None
    max_retries: int = 3

    def work(self, folder: GridFolder, runs: list[Run]) -> Generator[str | None]:
        seen = {run.name: see(folder, run.name) for run in runs}
        if self.workers == 1:
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
                threads=self.threads or 1,
                max_retries=self.max_retries,
            )


def _attempt_here(folder: GridFolder, seen: dict[str, Seen], run: Run, deaths: int) -> str | None:
    return attempt(folder, run, seen[run.name], patience=AFTER_A_DEATH if deaths else 1)


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
        if address is not None:
            _check_answers(address)
        try:
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else here))
        except ConnectionError as error:
            raise InputError(f"--ray_address {address} does not answer ({str(error).splitlines()[0]}).") from error
        offered = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.cpus, self.gpus = cpus, min(1.0, offered.get("GPU", 0.0)) if gpus is None else gpus
        self.max_retries = max_retries
        machines = [node["Resources"] for node in ray.nodes()]  # type: ignore[no-untyped-call]
        largest = {kind: max(machine.get(kind, 0.0) for machine in machines) for kind in ("CPU", "GPU")}
        for kind, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > largest[kind]:
                ray.shutdown()
                raise InputError(
                    f"--{kind.lower()}s_per_run asks for {wanted:g}, but no machine of the cluster has more than "
                    f"{largest[kind]:g}: ask for less."
                )

    def work(self, folder: GridFolder, runs: list[Run]) -> Generator[str | None]:
        ray = self._ray
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.max_retries)(_attempt_in_worker)
        seen = {run.name: see(folder, run.name) for run in runs}
        folder = GridFolder(folder.path.resolve())
        try:
            waiting = {task.remote(folder, run, seen[run.name], os.getcwd(), self.cpus): run for run in runs}
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                run = waiting.pop(ended)
                try:
                    yield ray.get(ended)
                except ray.exceptions.RayError as error:  # after the last retry
                    yield abandon(folder, run, str(error))
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise an `InputError` if no cluster answers, which `ray.init` itself would wait for for minutes."""
    from ray._private.services import canonicalize_bootstrap_address_or_die  # what `auto` stands for

    try:
        where = canonicalize_bootstrap_address_or_die(address) if address == "auto" else address.split("://")[-1]
        host, _, port = where.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
        join = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"
        probe = [sys.executable, "-c", join, address]
        subprocess.run(probe, timeout=_PATIENCE_TO_JOIN, check=True, capture_output=True)
        return
    except subprocess.TimeoutExpired:
        reason = f"it is no Ray cluster, or takes more than {_PATIENCE_TO_JOIN} seconds"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
    raise InputError(f"--ray_address {address} does not answer ({reason}).")


def _attempt_in_worker(folder: GridFolder, run: Run, seen: Seen, directory: str, threads: int) -> str | None:
    os.chdir(directory)  # which relative paths in the arguments start from
    torch.set_num_threads(threads)
    quiet_libraries()
    return attempt(folder, run, seen, patience=AFTER_A_DEATH)
