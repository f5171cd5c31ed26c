"""Checks that what is read is a regular file: reading a named pipe or a device might never end."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError


def check_is_file(path: Path) -> None:
    """Raise an `InputError` if the path exists but is a folder, a named pipe or a device."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a named pipe or a device"
        raise InputError(f"{path} is {kind}, not a file.")
