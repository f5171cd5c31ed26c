"""The record of a run: what `result.json` holds, how it is read, and what of it is measured here."""

# Without `from __future__ import annotations`: the types of `Record` are read when a record is.

import contextlib
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import torch
from transformers import TrainerState

from lbe_hf.log_lines import by_layer

from ..files import check_shape, read_json

RESULT_NAME = "result.json"


class Record(TypedDict):
    """The required fields of a record, as `run.run` describes them; others may be added."""

    metrics: dict[str, dict[str, float | int]]
    history: list[dict[str, Any]]
    layers: list[str]
    environment: dict[str, str]
    config: dict[str, Any]
    seconds: float | int | None
    examples_per_second: float | int | None
    peak_memory_mib: float | int | None
    diverged: bool
    """Whether a loss or a weight is not finite; False in records without this field."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in this folder, or None if the run is not done.

    Raises:
        InputError: the file is damaged, or does not hold a record.
    """
    path = folder / RESULT_NAME
    if not path.is_file():
        return None
    content = read_json(path)
    record: dict[str, Any] = {"diverged": False, "config": {}, **content} if isinstance(content, dict) else content
    check_shape(path, record, Record, "the record of a run")
    return record


def history(state: TrainerState) -> list[dict[str, Any]]:
    """What was logged in training, one entry a log line: losses, entropies and targets, the latter by layer."""
    entries = []
    for line in state.log_history:
        if "loss" not in line:
            continue
        entry = {name: value for name, value in line.items() if "/" not in name}
        entries.append({**entry, "entropies": by_layer(line, "entropy"), "targets": by_layer(line, "target")})
    return entries


def environment(device: torch.device) -> dict[str, str]:
    """The name of the device, and the versions of the packages that the results depend on."""
    names = {"cuda": torch.cuda.get_device_name, "cpu": lambda: f"CPU, {torch.get_num_threads()} threads"}
    packages = ("lbe-hf", "torch", "transformers", "accelerate", "datasets")
    return {
        "device": names.get(device.type, lambda: device.type)(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def reset_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory_mib` where the system supports it: on a GPU, and on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        # Not permitted everywhere; then, the peak counts from the start of the process.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float | None:
    """Peak memory since the reset, in MiB: allocated by PyTorch on a GPU, on a CPU resident in the process.

    None for other devices, and where the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if device.type == "cpu" and sys.platform == "linux":
        # Not reported everywhere: gVisor has the file without this line.
        with contextlib.suppress(OSError):
            peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
            return int(peak[1]) / 2**10 if peak else None
    return None
