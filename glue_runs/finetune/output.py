"""The output folder of a run, which run it holds, and the name of its repository on the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json, write_json
from .checkpoints import checkpoints, nested_checkpoint
from .record import RESULT_NAME

RUN_NAME = "run.json"
"""The settings of the run in the folder, written before it trains."""


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


def check_is_own(output_dir: str | Path, resumes_from: str | None, settings: Mapping[str, Any]) -> None:
    """Check that a run continues no other one.

    Args:
        output_dir: the output folder.
        resumes_from: `last`, or the folder of a checkpoint; None to start anew.
        settings: of the run, as from `arguments.defining_settings`.

    Raises:
        InputError: the folder has checkpoints and the run does not resume from one of them, or the run resumes from
            one of a run with other settings.
    """
    folder = Path(output_dir)
    begun_in = folder if resumes_from in (None, "last") else Path(str(resumes_from)).parent
    if checkpoints(folder) and (resumes_from is None or begun_in.resolve() != folder.resolve()):
        raise InputError(
            f"{folder} holds checkpoints of an earlier run: resume it with --resume_from_checkpoint last, or give "
            "another --output_dir."
        )
    if resumes_from is None:
        return
    path = begun_in / RUN_NAME
    before = read_json(path) if path.is_file() else {}
    for name, value in before.items() if isinstance(before, dict) else ():
        if value != settings.get(name, value):
            raise InputError(
                f"The checkpoints to resume from are of a run with --{name} {value}, not {settings[name]}: give that, "
                "or start anew in another --output_dir."
            )


def check_holds_one_run(output_dir: str | Path) -> None:
    """Raise an `InputError` if the folder contains checkpoints of another run, which would be pushed, too."""
    nested = nested_checkpoint(Path(output_dir))
    if nested is not None:
        raise InputError(f"{nested} would be pushed with the model: give each run an --output_dir of its own.")


def begin(output_dir: str | Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of the run into its folder, and remove the record of an earlier one."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_NAME).unlink(missing_ok=True)
    write_json(folder / RUN_NAME, dict(settings))


def repository(hub_model_id: str | None, output_dir: str | Path | None) -> str:
    """Repository of a run on the Hub: the given one, or else one with the name of the output folder."""
    return hub_model_id or Path(output_dir or "").absolute().name
