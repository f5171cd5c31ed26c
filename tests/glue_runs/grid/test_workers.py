"""Processes that do the items of a list, and die."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from worker_tasks import die_times, double, sleep_and_tell, visible_gpu

from glue_runs.grid.workers import do_in_workers

PATIENCE = 120  # seconds

SCRIPT = """
import sys
from worker_tasks import sleep_and_tell
from glue_runs.grid.workers import do_in_workers
if __name__ == "__main__":
    list(do_in_workers(sleep_and_tell, print, [sys.argv[1]], workers=1, threads=1, max_retries=0))
"""


def wait_for_pid(path: Path) -> int:
    end = time.monotonic() + PATIENCE
    while not path.is_file():
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(path.read_text())


def assert_ends(pid: int) -> None:
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    process.wait(PATIENCE)


def test_each_item_once() -> None:
    results = do_in_workers(double, abs, [3, 5, 8], workers=2, threads=1, max_retries=0)
    assert sorted(results) == [6, 10, 16]


def test_each_process_has_its_environment_and_one_that_replaces_it_the_same() -> None:
    items = [("a", 1), ("b", 1)]
    results = do_in_workers(
        visible_gpu, str, items, workers=2, threads=1, max_retries=1,
        environments=[{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}],
    )  # fmt: skip
    assert sorted(results) == ["3", "5"]


def test_no_item_starts_no_process() -> None:
    assert list(do_in_workers(double, abs, [], workers=2, threads=1, max_retries=0)) == []


def test_what_a_process_that_died_held_is_begun_again() -> None:
    items = [("unharmed", 0), ("once", 1), ("too often", 2)]
    results = do_in_workers(die_times, lambda item: (item[0], -1), items, workers=1, threads=1, max_retries=1)
    assert dict(results) == {"unharmed": 0, "once": 1, "too often": -1}


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_for_pid(tmp_path / "pid")
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(do_in_workers(sleep_and_tell, print, [str(tmp_path / "pid")], workers=1, threads=1, max_retries=0))
    thread.join()
    assert not psutil.pid_exists(wait_for_pid(tmp_path / "pid"))


def test_a_killed_parent_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "pid")]
    parent = subprocess.Popen(command, env=environment)
    worker = wait_for_pid(tmp_path / "pid")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert_ends(worker)
