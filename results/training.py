"""How the studies train `examples/deep_bert.py`: PROTOCOL.md, "common to the synthetic task"."""

import sys
from pathlib import Path
from typing import Any

import digit_words
import pandas as pd
from outcomes import LAST_STEP
from torch.utils.data import StackDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import deep_bert


def arguments(**settings: Any) -> deep_bert.Arguments:
    """The arguments of a run, by default of 400 steps at a constant learning rate, without output."""
    schedule = {"lr_scheduler_type": "constant", "max_steps": LAST_STEP}
    quiet = {"use_cpu": True, "disable_tqdm": True, "log_level": "error"}
    return deep_bert.Arguments(**{**schedule, **quiet, **settings})


def sentences(args: deep_bert.Arguments) -> StackDataset:
    """The examples of the synthetic task, none of which is seen twice."""
    return deep_bert.sentences(args.max_steps * args.train_batch_size, args.seed)


def train_on_digits(args: deep_bert.Arguments) -> tuple[float, deep_bert.AccuracyTrainer]:
    """Train on digits as sequences; the accuracy on the test images, and the trainer."""
    training, test = digit_words.digits()
    trainer = deep_bert.train(args, training, deep_bert.network(args, digit_words.WORDS, digit_words.LABELS))
    predicted, labels, _ = trainer.predict(test)
    return float((predicted.argmax(-1) == labels).mean()), trainer


def by_step(trainer: deep_bert.AccuracyTrainer, *columns: str) -> pd.DataFrame:
    """A row for every 20 steps: accuracy and loss on the batches before their steps, and these columns of the log."""
    lines = pd.DataFrame([line for line in trainer.state.log_history if "accuracy" in line])
    return lines[["step", "accuracy", "task_loss", *columns]].round(4)
