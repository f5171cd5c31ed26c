"""The record that a run leaves behind: one JSON file, there as a whole or not at all."""

# Without `from __future__ import annotations`: the types of `Record` are read when a record is.

import contextlib
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainerState

from lbe_hf.monitor import by_layer

from ..errors import InputError

RESULT_NAME = "result.json"

COMPARE_BY = ["task", "model", "protocol", "fixed_settings"]
"""What two runs must share to be compared."""

HYPERPARAMETERS = ["learning_rate", "alpha", "beta"]
"""What is chosen by validation."""


class Record(TypedDict):
    """What each run leaves, as `run.run` describes it; there may be more."""

    metrics: dict[str, dict[str, float | int]]
    history: list[dict[str, Any]]
    layers: list[str]
    environment: dict[str, str]
    config: dict[str, Any]
    seconds: float | int | None
    examples_per_second: float | int | None
    peak_memory_mib: float | int | None
    diverged: bool
    """Whether the loss or the weights did; False in records that do not tell."""


def write_json(path: Path, content: Any) -> None:
    """As `write_text`, in JSON."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write the file so that a reader, or a crash, finds the old content or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Content of the file; `InputError` if it is damaged or cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give yourself the right to read it.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it and start again.") from error


def check_shape(path: Path, content: Any, shape: type[Any], what: str) -> None:
    """Raise unless `content`, read from `path`, is a dictionary with at least the fields of a `TypedDict`.

    Args:
        path: named in the error.
        content: what is checked.
        shape: the `TypedDict`, of a module without postponed annotations.
        what: name of what the content should be, as in "the record of a run".

    Raises:
        InputError: a field is missing or has another type.
    """
    try:
        if not isinstance(content, dict):
            raise TypeError(f"it is {'null' if content is None else f'a {type(content).__name__}'}")
        validate_typed_dict(shape, {name: content[name] for name in shape.__annotations__ if name in content})
    except (TypeError, StrictDataclassError) as error:
        raise wrong_content(path, what, str(error)) from error


def wrong_content(path: Path, what: str, reason: str) -> InputError:
    """The error of a file that can be read but is not what it should be."""
    reason = " ".join(reason.split()).rstrip(".")
    return InputError(f"{path} is not {what} ({reason}): delete it and start again.")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in this folder, or None if it is not done.

    Raises:
        InputError: the file is damaged, or is not a record.
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
    if platform.system() == "Linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    return None
