"""Finds the checkpoints that a run can be resumed from."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lbe_hf.targets import TARGETS_NAME

_PARTS = ("*model*", "*optimizer*", "scheduler.pt", "rng_state*.pth")
_PARTS_OF_DEEPSPEED = ("global_step*", "rng_state*.pth")  # the first one holds the other parts


class DamagedCheckpointError(Exception):
    """Training cannot be resumed from a checkpoint; the cause is the error that the attempt raised."""


def checkpoints(output_dir: str | Path) -> list[Path]:
    """All checkpoint folders in `output_dir`, newest first; links do not count."""
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path) is not None]
    return sorted(folders, key=lambda path: _step(path) or 0, reverse=True)


def holds_checkpoint(folder: Path) -> bool:
    """Whether the folder is a checkpoint by its name, also one that is set aside."""
    return folder.name.lstrip("_").startswith(f"{PREFIX_CHECKPOINT_DIR}-")


def last_checkpoint(output_dir: str | Path, lbe_beta: float) -> str | None:
    """The newest complete checkpoint in `output_dir`, or None; arguments as for `is_complete`."""
    return next((str(path) for path in checkpoints(output_dir) if is_complete(path, lbe_beta)), None)


def is_complete(checkpoint: Path, lbe_beta: float) -> bool:
    """Whether the folder has every file that a run needs to resume exactly.

    Args:
        checkpoint: the folder.
        lbe_beta: strength of the penalty; if it is positive, the learnable targets are among the files.
    """
    parts = _PARTS_OF_DEEPSPEED if any(checkpoint.glob(_PARTS_OF_DEEPSPEED[0])) else _PARTS
    if not all(any(checkpoint.glob(part)) for part in (*parts, *[TARGETS_NAME] * (lbe_beta > 0))):
        return False
    try:  # Trainer writes its state last
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    except Exception:  # a damaged file may hold anything
        return False
    return bool(state.global_step == _step(checkpoint))


def nested_checkpoint(output_dir: Path) -> Path | None:
    """A checkpoint of another run inside `output_dir`, which Trainer would push: it leaves out only its own."""
    own = f"{PREFIX_CHECKPOINT_DIR}-*"
    folders = (path for path in output_dir.glob("*/") if not path.match(own) and not path.name.startswith("_"))
    return next((nested for folder in folders for nested in folder.rglob(own) if nested.is_dir()), None)


def _step(checkpoint: Path) -> int | None:
    step = checkpoint.name.rpartition("-")[2]
    usable = step.isdecimal() and checkpoint.is_dir() and not checkpoint.is_symlink()
    return int(step) if usable else None
