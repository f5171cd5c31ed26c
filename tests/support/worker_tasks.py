"""What the tests let worker processes do: a module that a spawned process can import."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from glue_runs.grid import execution


def double(item: int, deaths: int) -> int:
    return 2 * item


def die_times(item: tuple[str, int], deaths: int) -> tuple[str, int]:
    """Name of the item and how often its process died, after it died as often as the item tells."""
    name, wanted = item
    if deaths < wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return name, deaths


def visible_gpu(item: tuple[str, int], deaths: int) -> str:
    """The GPU that this process sees, after it died as often as the item tells."""
    die_times(item, deaths)
    time.sleep(3)  # so that the other process takes the other item
    return os.environ["CUDA_VISIBLE_DEVICES"]


def lose_gpu(item: str, deaths: int) -> str:
    """Release the memory of a run whose GPU failed, in a process that thinks it has one."""
    if item == "fails" and not deaths:

        def fail() -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

        torch.cuda.is_initialized, torch.cuda.synchronize = (lambda: True), fail
        execution._release_memory()
    return f"{item} after {deaths}"


def sleep_and_tell(item: str, deaths: int) -> None:
    """Write the number of the process into the file that the item names, and stay."""
    Path(f"{item}.part").write_text(str(os.getpid()))
    Path(f"{item}.part").replace(item)
    time.sleep(600)


@dataclass(frozen=True)
class StudyRun:
    name: str


def fails_once(run: StudyRun) -> pd.DataFrame:
    """Count in a file how often a run was executed; the run "bad" fails the first time."""
    with Path(f"{run.name}.txt").open("a") as log:
        log.write("executed\n")
    if run.name == "bad" and Path("bad.txt").read_text().count("\n") == 1:
        raise RuntimeError("fails once")
    return pd.DataFrame({"score": [1.0]})


def tells_and_stays(run: StudyRun) -> pd.DataFrame:
    """Write the number of the process into a file, and stay."""
    sleep_and_tell(f"{run.name}.pid", 0)
    return pd.DataFrame()


def dies(run: StudyRun) -> pd.DataFrame:
    os.kill(os.getpid(), signal.SIGKILL)
    return pd.DataFrame()
