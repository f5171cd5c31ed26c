"""`LBETrainer` that resumes exactly, pushes one run only, and reports failed pushes."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from lbe_hf import LBETrainer

from .checkpoints import nested_checkpoint

logger = logging.get_logger(__name__)


class GlueTrainer(LBETrainer):
    """`LBETrainer` that never steps past `max_steps`, pushes one run only, and reports failed pushes."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer compares with max_steps only after a step: resumed with no step left, it would make another one.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.push_to_hub`.

        Raises:
            ValueError: the output folder contains other runs, whose checkpoints would also be pushed.
        """
        nested = nested_checkpoint(Path(str(self.args.output_dir)))
        if nested is not None:
            raise ValueError(f"{nested} would be pushed with the model: give each run an output_dir of its own.")
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception:
            folder, repo = self.args.output_dir, self.hub_model_id or "REPO"
            logger.error(
                f"The push to the Hub failed. The model is saved in {folder}: push it later with "
                f"trainer.push_to_hub() or `hf upload {repo} {folder} . --exclude '{PREFIX_CHECKPOINT_DIR}-*'`."
            )
            raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        report_failed_pushes(getattr(self, "push_in_progress", None))
        nested = nested_checkpoint(Path(str(self.args.output_dir)))
        if nested is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            logger.warning_once(
                f"Nothing is pushed: {nested} would be pushed, too. Give each run an output_dir of its own."
            )

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        report_failed_pushes(getattr(self, "push_in_progress", None))


def report_failed_pushes(push: PushInProgress | None) -> None:
    """Warn once of each background push that failed: Trainer only checks whether they have ended."""
    if push is None:
        return
    jobs: list[Future[Any]] = push.jobs  # type: ignore[assignment]
    over = [job for job in jobs if job.done()]
    push.jobs = [job for job in jobs if job not in over]
    for job in over:
        error = None if job.cancelled() else job.exception()
        if error is not None:
            reason = " ".join(f"{error} {error.__cause__ or ''}".split())
            logger.warning(f"A push to the Hub failed in the background; training continues: {reason}")
