"""Shared by the examples on images: command line, datasets, accuracy and progress bar."""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from images import Split
from torch.utils.data import StackDataset
from transformers import EvalPrediction, HfArgumentParser, PrinterCallback, ProgressCallback, Trainer

T = TypeVar("T")


def parse(arguments: type[T], defaults: Callable[[Namespace], dict[str, Any]], argv: Sequence[str] | None = None) -> T:
    """Parse a command line in which some defaults depend on other arguments.

    Args:
        arguments: a dataclass with a default for every field.
        defaults: returns the defaults that differ, given the arguments; what the command line sets is not changed.
        argv: the words of the command line; by default those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(arguments)
    given, _ = parser.parse_known_args([word for word in words if word not in ("-h", "--help")])
    parser.set_defaults(**defaults(given))
    (args,) = parser.parse_args_into_dataclasses(words)
    return args


def dataset(split: Split, images: str = "images") -> StackDataset:
    """Examples as dictionaries; `images` is the model's name for the images."""
    return StackDataset(**{images: split.images, "labels": split.labels})


def accuracy_of(outputs: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((outputs.predictions.argmax(-1) == outputs.label_ids).mean())}


def show_only_a_bar(trainer: Trainer) -> None:
    """Show a progress bar instead of one line per epoch; with `--disable_tqdm`, show nothing."""
    trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(Progress)


class Progress(ProgressCallback):
    """A progress bar that shows the validation score."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "eval_loss" in logs:
            name = "accuracy" if "eval_accuracy" in logs else "loss"
            self.training_bar.set_postfix({name: f"{logs[f'eval_{name}']:.3f}"})
