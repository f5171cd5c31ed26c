"""The record that a run leaves behind: one JSON file, there as a whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from lbe_hf.monitor import by_layer

from ..errors import InputError

RESULT_NAME = "result.json"

SETUP = ["task", "model", "protocol", "fixed_settings"]
"""What two runs must share to be compared."""

SETTING = ["learning_rate", "alpha", "beta"]
"""What is chosen by validation."""


def write_json(path: Path, content: Any) -> None:
    """Write the file so that a reader, or a crash, finds the old content or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Content of the file; `InputError` if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): delete it and start again.") from error


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in this folder, or None if it is not done."""
    path = folder / RESULT_NAME
    return read_json(path) if path.is_file() else None


def history(state: TrainerState) -> list[dict[str, Any]]:
    """What was logged in training, one entry a log line: losses, entropies and targets, the latter by layer."""
    entries = []
    for line in state.log_history:
        if "loss" not in line:
            continue
        entry = {name: value for name, value in line.items() if "/" not in name}
        entries.append({**entry, "entropies": by_layer(line, "entropy"), "targets": by_layer(line, "target")})
    return entries


def environment() -> dict[str, str]:
    """Device, and the versions of what the figures depend on."""
    cuda = torch.cuda.is_available()
    packages = ("lbe-hf", "torch", "transformers", "accelerate", "datasets")
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def reset_peak_memory() -> None:
    """Start `peak_memory_mib` anew, where the system can: on a GPU, and on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # not permitted everywhere; the peak is then that since the process began
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float | None:
    """Most memory since the reset, in MiB: what PyTorch allocated on the GPU, else what the process held.

    None where the system does not tell.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    return None
