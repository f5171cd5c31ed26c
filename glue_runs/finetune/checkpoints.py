"""Which checkpoints a run can be resumed from."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lbe_hf.targets import TARGETS_NAME

_PARTS = ("*model*", "*optimizer*", "scheduler.pt", "rng_state*.pth")
_PARTS_OF_DEEPSPEED = ("global_step*", "rng_state*.pth")  # the first holds the others


class DamagedCheckpointError(Exception):
    """Training cannot be resumed from a checkpoint; the cause is what was raised when it was tried."""


def checkpoints(output_dir: str | Path) -> list[Path]:
    """All checkpoint folders in `output_dir`, newest first."""
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path) is not None]
    return sorted(folders, key=lambda path: _step(path) or 0, reverse=True)


def last_checkpoint(output_dir: str | Path, with_targets: bool = False) -> str | None:
    """The newest complete checkpoint in `output_dir`, or None; arguments as for `is_complete`."""
    return next((str(path) for path in checkpoints(output_dir) if is_complete(path, with_targets)), None)


def is_complete(checkpoint: Path, with_targets: bool = False) -> bool:
    """Whether the folder has each file without which a resumed run would not end as if left alone.

    Args:
        checkpoint: the folder.
        with_targets: whether the learnable targets are among them.
    """
    parts = _PARTS_OF_DEEPSPEED if any(checkpoint.glob(_PARTS_OF_DEEPSPEED[0])) else _PARTS
    if not all(any(checkpoint.glob(part)) for part in (*parts, *[TARGETS_NAME] * with_targets)):
        return False
    try:  # Trainer writes its state last
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    except Exception:  # of whatever a damaged file may hold
        return False
    return bool(state.global_step == _step(checkpoint))


def _step(checkpoint: Path) -> int | None:
    step = checkpoint.name.rpartition("-")[2]
    return int(step) if step.isdecimal() and checkpoint.is_dir() else None
