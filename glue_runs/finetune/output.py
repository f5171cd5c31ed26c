"""The output folder of a run, and the name of its repository on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError


def check_output_dir(output_dir: str | Path) -> None:
    """Raise an `InputError` if the folder cannot be written or created; nothing is created here."""
    folder = Path(output_dir).absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    reason = None
    if not nearest.is_dir():
        reason = f"{nearest} is a file"
    elif not os.access(nearest, os.W_OK | os.X_OK):
        reason = f"{nearest} is read-only"
    if reason is not None:
        raise InputError(f"{output_dir} cannot be written, because {reason}: give another --output_dir.")


def repository(hub_model_id: str | None, output_dir: str | Path | None) -> str:
    """Repository of a run on the Hub: the given one, or else one with the name of the output folder."""
    return hub_model_id or Path(output_dir or "").absolute().name
