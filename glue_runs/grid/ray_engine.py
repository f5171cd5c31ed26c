"""Does the runs of a grid as tasks of a Ray cluster (extra `ray`)."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Generator
from typing import Any

import torch

from ..analysis.store import GridFolder
from ..errors import InputError
from .execution import AFTER_A_DEATH, Seen, abandon, attempt, see
from .plan import Run
from .progress import quiet_libraries

_PATIENCE = 20  # seconds for an address to answer
_PATIENCE_TO_JOIN = 60  # seconds to join a cluster, which is slow on a shared file system


class RayEngine:
    """Each run is a Ray task; as many run at once as the cluster has CPUs and GPUs for.

    Ray replaces a worker that dies, whether killed or out of memory, and the run resumes from its last checkpoint.
    Workers need the folder of the grid, and all other files that the arguments name, under the same paths.

    Args:
        address: of a running cluster, as for `ray.init`; None: Ray is started on this machine and ends with the grid.
        cpus: CPUs per run, and its number of threads.
        gpus: GPUs per run, at most 1; None: one if there is one.
        max_retries: how often a run is resumed after its worker died.
    """

    def __init__(self, address: str | None, cpus: int, gpus: float | None, max_retries: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:  # keeps Ray on 127.0.0.1 on every system; read when Ray is imported
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise InputError("--engine ray needs Ray: pip install ray.") from None
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
    """Raise an `InputError` if no cluster answers; `ray.init` itself would wait for minutes."""
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
    os.chdir(directory)  # relative paths in the arguments start here
    torch.set_num_threads(threads)
    quiet_libraries()
    return attempt(folder, run, seen, patience=AFTER_A_DEATH)
