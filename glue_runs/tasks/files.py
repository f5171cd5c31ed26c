"""What is read is a file: a named pipe or a device would never end."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError


def check_is_file(path: Path) -> None:
    """Raise an `InputError` for what exists and is no regular file: a folder, a named pipe, a device."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a named pipe or a device"
        raise InputError(f"{path} is {kind}, not a file.")
