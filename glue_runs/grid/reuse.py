"""Whether results that are there already are those of the weights and examples that the grid is given now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..analysis.store import GRID_NAME, GridFolder
from ..errors import InputError
from ..finetune.checkpoints import last_checkpoint
from .plan import Run

TRAINED_ON = "trained_on"
"""Key of the fingerprint in the description of a run in `grid.json`."""


def describe(
    folder: GridFolder, runs: Iterable[Run], fingerprints: Mapping[tuple[str, str], dict[str, str]]
) -> dict[str, dict[str, Any]]:
    """What `grid.json` is told of each run, by name: its description, and what it is trained on.

    Prints how many runs were begun before that was recorded: they stay without it, and are reused unchecked.

    Args:
        folder: of the grid, which need not exist yet.
        runs: those that are wanted.
        fingerprints: by task and model.

    Raises:
        InputError: a run that is done or begun was trained on something else.
    """
    recorded = folder.runs if (folder.path / GRID_NAME).is_file() else {}
    descriptions: dict[str, dict[str, Any]] = {}
    unchecked = 0
    for run in runs:
        now = fingerprints[run.task, run.model]
        before = recorded.get(run.name, {}).get(TRAINED_ON)
        descriptions[run.name] = {**run.description, TRAINED_ON: now}
        if not _is_begun(folder, run.name):
            continue
        if before is None:
            unchecked += 1
            del descriptions[run.name][TRAINED_ON]
            continue
        changed = [part for part in now if before.get(part, now[part]) != now[part]]
        if changed:
            raise InputError(
                f"{run.name} was trained on other {' and '.join(changed)} than it would be now: "
                f"give another --output_dir, or delete {folder.run_dir(run.name)}."
            )
    if unchecked:
        print(f"{unchecked} runs were begun before what they are trained on was recorded: they are reused unchecked.")
    return descriptions


def _is_begun(folder: GridFolder, name: str) -> bool:
    """A run that failed, or was interrupted before its first checkpoint, starts anew on what is there now."""
    return folder.state(name) in ("done", "running") or last_checkpoint(str(folder.run_dir(name))) is not None
