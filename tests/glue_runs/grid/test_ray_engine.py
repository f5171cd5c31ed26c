"""The grid on a real Ray cluster of one machine, started once."""

import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from glue_runs.analysis.store import GridFolder
from glue_runs.errors import InputError
from glue_runs.grid.command import main
from glue_runs.grid.ray_engine import RayEngine

GRID = "--tasks demo_rte --learning_rates 1e-3 --lbe_alphas 0.5 --lbe_betas 0.05 --num_train_epochs 4"
GRID += " --workers 1 --cpus_per_run 1"
TIMINGS = ("seconds", "examples_per_second", "peak_memory_mib")
PATIENCE = 120  # seconds

# Ray reads these when it is imported; the last one keeps it on 127.0.0.1.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
ENVIRONMENT |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

_CLUSTER = """
import sys
import ray
context = ray.init(
    "local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, _node_ip_address="127.0.0.1",
    log_to_driver=False, logging_level="error",
)
print("address:", context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@dataclass
class Cluster:
    process: psutil.Process
    arguments: list[str]

    def workers(self) -> list[psutil.Process]:
        """Processes that are doing a run."""
        found = []
        for process in self.process.children(recursive=True):
            try:
                found += [process] if "_attempt_in_worker" in " ".join(process.cmdline()) else []
            except psutil.NoSuchProcess:
                continue
        return found


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """For every test: the first one that imports Ray need not be one that asks for the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed: the tests of --engine ray did not run")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = subprocess.Popen([sys.executable, "-c", _CLUSTER], text=True, **pipes)
    assert started.stdin is not None
    assert started.stdout is not None
    address = next(line.split()[1] for line in started.stdout if line.startswith("address:"))
    assert address.startswith("127.0.0.1:")
    yield Cluster(psutil.Process(started.pid), ["--engine", "ray", "--ray_address", address])
    started.stdin.close()
    started.wait(PATIENCE)


@pytest.fixture
def grid(tiny_encoder: str) -> list[str]:
    """Baseline and LBE, of four checkpoints each, a seed."""
    return [*GRID.split(), "--models", tiny_encoder]


@pytest.fixture(scope="module")
def records_of_local(tiny_encoder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the local engine makes of two seeds, by name of the run."""
    path = tmp_path_factory.mktemp("local") / "grid"
    assert main([*GRID.split(), "--models", tiny_encoder, "--seeds", "1", "2", "--output_dir", str(path)]) == 0
    return records(path)


def records(path: Path) -> dict[str, Any]:
    """Results by run, without what no two runs have in common."""
    folder = GridFolder(path)
    found = {}
    for name in folder.runs:
        record = folder.result(name)
        assert record is not None
        record["config"].pop("resume_from_checkpoint")
        found[name] = {key: value for key, value in record.items() if key not in TIMINGS}
    return found


def wait_for(what: Callable[[], Any]) -> Any:
    """What the function returns as soon as it is true."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def unfinished_checkpoints(path: Path) -> list[Path]:
    return [
        checkpoint
        for checkpoint in path.glob("runs/*/checkpoint-8/trainer_state.json")
        if not (checkpoint.parents[1] / "result.json").exists()
    ]


def kill_all_workers(cluster: Cluster, path: Path) -> threading.Thread:
    """In the background, as soon as a run has its first checkpoint."""

    def kill() -> None:
        begun: list[Path] = []
        while not begun:
            wait_for(lambda: unfinished_checkpoints(path))
            workers = cluster.workers()
            for worker in workers:
                worker.suspend()
            begun = unfinished_checkpoints(path)  # a run takes a second, and may have ended meanwhile
            for worker in workers:
                worker.kill() if begun else worker.resume()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_killed_workers_are_replaced_and_the_results_are_those_of_the_local_engine(
    cluster: Cluster, grid: list[str], records_of_local: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid"
    killer = kill_all_workers(cluster, path)
    assert main([*grid, *cluster.arguments, "--seeds", "1", "2", "--output_dir", str(path)]) == 0
    killer.join()
    printed = capfd.readouterr().out
    assert "All 4 runs are done." in printed
    assert len(re.findall(r": validation accuracy .*, test accuracy ", printed)) == 4
    assert ", resumed" in printed
    assert records(path) == records_of_local


def test_killed_driver(cluster: Cluster, grid: list[str], records_of_local: Any, tmp_path: Path) -> None:
    """What its workers had begun is left to whoever comes next, here the other engine."""
    arguments = [*grid, "--seeds", "1", "--output_dir", str(tmp_path / "grid")]
    command = [sys.executable, "-m", "glue_runs.grid", *arguments, *cluster.arguments]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: unfinished_checkpoints(tmp_path / "grid"))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    folder = GridFolder(tmp_path / "grid")
    wait_for(lambda: "running" not in [folder.state(name) for name in folder.runs])
    assert "interrupted" in [folder.state(name) for name in folder.runs]
    assert main(arguments) == 0
    done = records(tmp_path / "grid")
    assert len(done) == 2
    assert done == {name: records_of_local[name] for name in done}


def test_worker_that_dies_too_often(
    cluster: Cluster, grid: list[str], records_of_local: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*grid, "--seeds", "1", "--output_dir", str(tmp_path / "grid")]
    killer = kill_all_workers(cluster, tmp_path / "grid")
    assert main([*arguments, *cluster.arguments, "--max_retries", "0"]) == 1
    killer.join()
    folder = GridFolder(tmp_path / "grid")
    failed = [name for name in folder.runs if folder.state(name) == "failed"]
    assert failed
    printed = capfd.readouterr().err
    for name in failed:
        assert f"failed: {name}: " in printed
        assert "died" in (folder.run_dir(name) / "error.txt").read_text()
    assert main(arguments) == 0  # from the checkpoints that they left
    assert ", resumed" in capfd.readouterr().out
    assert records(tmp_path / "grid") == {name: records_of_local[name] for name in folder.runs}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--gpus_per_run 0.5", "--gpus_per_run asks for 0.5, but no machine of the cluster has more than 0"),
        ("--cpus_per_run 3", "--cpus_per_run asks for 3, but no machine of the cluster has more than 2"),
    ],
)
def test_what_the_cluster_does_not_have(
    cluster: Cluster, grid: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    output = ["--output_dir", str(tmp_path / "grid")]
    assert main([*grid, *cluster.arguments, *output, *arguments.split()]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "grid").exists()


def test_without_ray(
    grid: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*grid, "--engine", "ray", "--output_dir", str(tmp_path / "grid")]) == 2
    assert capfd.readouterr().err.endswith("error: --engine ray needs Ray: pip install ray.\n")


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "auto", "nowhere"])
def test_an_address_where_nothing_listens(
    tiny_encoder: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: the tests of --engine ray did not run")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")  # what auto stands for
    arguments = [*GRID.split(), "--models", tiny_encoder, "--seeds", "1", "--output_dir", str(tmp_path / "grid")]
    begun = time.monotonic()
    assert main([*arguments, "--engine", "ray", "--ray_address", address.format(port=port)]) == 2
    assert time.monotonic() - begun < 30
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: --ray_address {address.format(port=port)} does not answer (")


def test_an_address_where_something_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: the tests of --engine ray did not run")
    monkeypatch.setattr("glue_runs.grid.ray_engine._PATIENCE_TO_JOIN", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(InputError, match=re.escape(f"{address} does not answer (it is no Ray cluster, or")):
            RayEngine(address, cpus=1, gpus=None, max_retries=0)
