"""Shared by the examples on images: command line, methods and seeds, training of classifiers, figure, progress bar."""

import copy
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from images import Split, Splits
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import StackDataset
from transformers import EvalPrediction, HfArgumentParser, PrinterCallback, ProgressCallback, Trainer

from lbe_hf import LBETrainer, LBETrainingArguments
from lbe_hf.figures import draw_entropy_by_step

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


def check_seed(args: LBETrainingArguments) -> None:
    """Exit with an error for a seed that would be ignored."""
    if args.seed != LBETrainingArguments.seed:
        sys.exit("error: give --seeds instead of --seed.")


def check_log(args: LBETrainingArguments) -> None:
    """Exit with an error unless each epoch logs the entropies and the validation score, which the figures show."""
    if {args.logging_strategy, args.eval_strategy} != {"epoch"} or not args.lbe_log_entropy:
        sys.exit(
            "error: leave out --logging_strategy, --eval_strategy and --lbe_log_entropy: the figures need the log of "
            "each epoch."
        )


def methods_and_seeds(args: Any) -> Iterator[tuple[str, Any]]:
    """Name of the trainer and arguments of each network: without the penalty and with it, one per seed."""
    for beta, seed in product(dict.fromkeys((0.0, args.lbe_beta)), args.seeds):
        run = copy.copy(args)
        run.lbe_beta, run.seed = beta, seed
        yield "LBETrainer" if beta else "Trainer", run


def train_classifier(
    model: nn.Module, args: LBETrainingArguments, splits: Splits, images: str = "images"
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Train a network; return its accuracies and the seconds of training, and the log history.

    Args:
        images: the model's name for the images.
    """
    training, validation, test = (dataset(split, images) for split in splits)
    trainer = LBETrainer(model, args, train_dataset=training, eval_dataset=validation, compute_metrics=accuracy_of)
    show_only_a_bar(trainer)
    seconds = trainer.train().metrics["train_runtime"]
    scores = [trainer.predict(examples).metrics["test_accuracy"] for examples in (validation, test)]
    return {"validation": scores[0], "test": scores[1], "seconds": seconds}, trainer.state.log_history


def draw_entropies(histories: dict[str, Any], folder: str) -> None:
    """Draw the batch entropy by layer and step, one panel for each method."""
    figure = Figure(figsize=(1.5 + 3 * len(histories), 3.4), layout="constrained")
    panels = figure.subplots(1, len(histories), sharey=True, squeeze=False)[0]
    for (method, history), panel in zip(histories.items(), panels, strict=True):
        image = draw_entropy_by_step(panel, history, highest=2)
        panel.set_title(method, fontsize="medium")
        panel.label_outer()
    figure.colorbar(image, ax=panels, label="batch entropy (nats)", extend="max")
    figure.savefig(Path(folder, "entropy.png"), dpi=150)


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
