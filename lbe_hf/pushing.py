"""What can go wrong with a push to the Hub without Trainer saying so."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

logger = logging.get_logger(__name__)


def report_failed_pushes(push: PushInProgress | None) -> None:
    """Warn of each push in the background that failed, once: Trainer asks only whether they are over."""
    if push is None:
        return
    jobs: list[Future[Any]] = push.jobs  # type: ignore[assignment]
    over = [job for job in jobs if job.done()]
    push.jobs = [job for job in jobs if job not in over]
    for job in over:
        error = None if job.cancelled() else job.exception()
        if error is not None:
            reason = " ".join(f"{error} {error.__cause__ or ''}".split())
            logger.warning(f"A push to the Hub failed in the background, training goes on: {reason}")


def nested_checkpoint(output_dir: Path) -> Path | None:
    """A checkpoint of another run inside `output_dir`, which Trainer would push: it leaves out those of its own."""
    own = f"{PREFIX_CHECKPOINT_DIR}-*"
    folders = (path for path in output_dir.glob("*/") if not path.match(own) and not path.name.startswith("_"))
    return next((nested for folder in folders for nested in folder.rglob(own) if nested.is_dir()), None)
