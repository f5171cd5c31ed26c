"""Whole files: what is read is a regular file of the expected shape, what is written is all there or not at all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError

from .errors import InputError

_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


def check_is_file(path: Path) -> None:
    """Raise an `InputError` if the path exists but is a folder, a named pipe or a device."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a named pipe or a device"
        raise InputError(f"{path} is {kind}, not a file.")


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
