"""Progress of a grid: one bar for the grid, one for the current run, and a line for each finished run."""

from __future__ import annotations

import multiprocessing
import warnings
from logging import WARNING, Filter, LogRecord
from typing import Any

import datasets
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.utils import logging


class RunBar(TrainerCallback):
    """A bar below the one of the grid; it replaces the output of Trainer."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self.name, leave=False, position=1, disable=None
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def show_run(trainer: Trainer, name: str) -> None:
    """Replace the progress output of the trainer by one bar, or by nothing in a worker process."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if multiprocessing.parent_process() is None:
        trainer.add_callback(RunBar(name))


class _MoreThanWarnings(Filter):
    def filter(self, record: LogRecord) -> bool:
        return record.levelno > WARNING


def quiet_libraries() -> None:
    """Silence what would repeat for each run: bars of loading and tokenizing, notes on the head and the loader."""
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator is found")
    datasets.disable_progress_bars()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # A filter and not a level: above WARNING, this logger also reports on tensor parallelism.
    logging.get_logger("transformers.modeling_utils").addFilter(_MoreThanWarnings())
