"""The record of a run: one JSON file that is written as a whole or not at all."""

# Without `from __future__ import annotations`: the types of `Record` are read when a record is.

import contextlib
import json
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainerState

from lbe_hf.log_lines import by_layer

from ..errors import InputError

RESULT_NAME = "result.json"

COMPARE_BY = ["task", "model", "protocol", "fixed_settings"]
"""Fields that two runs must share to be compared."""

_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)

HYPERPARAMETERS = ["learning_rate", "alpha", "beta"]
"""Fields that are chosen by validation scores."""


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


def write_json(path: Path, content: Any) -> None:
    """Write the content as JSON, as `write_text` does."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write the file atomically: after a crash, and for every reader, it holds the old content or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Content of the file; `InputError` if it is damaged or cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_int=_parse_int)
        if _SURROGATE.search(text):
            # A pair of surrogates is a character; a single one raises.
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        return content
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): make it readable.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it and start again.") from error


def _parse_int(digits: str) -> int:
    if abs(value := int(digits)) >= 2**63:
        raise ValueError(f"{digits[:20]}... has too many digits")
    return value


def check_shape(path: Path, content: Any, shape: type[Any], what: str) -> None:
    """Check that `content`, read from `path`, is a dictionary with at least the fields of a `TypedDict`.

    Args:
        path: named in the error.
        content: the content to check.
        shape: the `TypedDict`, from a module without postponed annotations.
        what: what the content should be, as in "the record of a run".

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
    """The error for a file that can be read but holds something else."""
    reason = " ".join(reason.split()).rstrip(".")
    return InputError(f"{path} is not {what} ({reason}): delete it and start again.")


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


def environment() -> dict[str, str]:
    """The device, and the versions of the packages that the results depend on."""
    cuda = torch.cuda.is_available()
    packages = ("lbe-hf", "torch", "transformers", "accelerate", "datasets")
    return {
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def reset_peak_memory() -> None:
    """Reset `peak_memory_mib` where the system supports it: on a GPU, and on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        # Not permitted everywhere; then, the peak counts from the start of the process.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib() -> float | None:
    """Peak memory since the reset, in MiB: allocated by PyTorch on the GPU, or else resident in the process.

    None where the system does not report it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if platform.system() == "Linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    return None
