"""Fine-tune one encoder on one GLUE task with `GlueTrainer`: `python -m glue_runs.finetune --help`."""

from __future__ import annotations

import math
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding, TrainerCallback, set_seed

from ..errors import InputError
from ..redaction import redact
from ..tasks.data import load_official, split, tokenize
from ..tasks.glue import Task, get_task
from ..tasks.metrics import compute_metrics_for
from .arguments import DataArguments, FinetuneArguments, ModelArguments, parse
from .card import write_card
from .checkpoints import DamagedCheckpointError, last_checkpoint
from .checks import check_batches, check_optimizer
from .encoder import load_model, load_tokenizer
from .output import check_output_dir
from .push import PushArguments, hub_is_ready, push_or_say_why
from .record import RESULT_NAME, environment, history, peak_memory_mib, reset_peak_memory, write_json
from .trainer import GlueTrainer


class LogWhereSaved(TrainerCallback):
    """Log lines end where epochs and checkpoints do, so that those of a resumed run are those of a run left alone."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = True


class HasTrained(TrainerCallback):
    """Whether training has made a step since it began, or had none to make."""

    def __init__(self) -> None:
        self.yes = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.yes = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.yes = True


@lru_cache
def tokenized_rows(
    task_name: str, model_name_or_path: str, data_dir: str | None, max_length: int, pad_to_max_length: bool
) -> DatasetDict:
    """The official splits in tokens; many runs of one process share them."""
    task = get_task(task_name)
    official = load_official(task, data_dir)
    return tokenize(official, task, load_tokenizer(model_name_or_path), max_length, pad_to_max_length)


def split_as_told(examples: DatasetDict, data_args: DataArguments) -> DatasetDict:
    """`split` of the official splits as the arguments tell."""
    return split(
        examples,
        get_task(data_args.task_name),
        data_args.validation_fraction,
        data_args.split_seed,
        data_args.validation_rounding,
        data_args.max_train_samples,
        data_args.max_eval_samples,
    )


def prepare(
    model_args: ModelArguments, data_args: DataArguments, args: FinetuneArguments
) -> tuple[GlueTrainer, DatasetDict]:
    """Everything up to the first training step: the trainer, and the tokenized rows by split, as `data.split` says.

    Raises:
        ValueError: something in the arguments or the data cannot be run, or the output folder cannot be written.
    """
    check_output_dir(str(args.output_dir))
    task, model_name = get_task(data_args.task_name), model_args.model_name_or_path
    if args.resume_from_checkpoint == "last":
        args.resume_from_checkpoint = last_checkpoint(str(args.output_dir), with_targets=args.lbe_beta > 0)
        if args.resume_from_checkpoint is None:
            raise InputError(f"{args.output_dir} has no complete checkpoint: start without --resume_from_checkpoint.")
    elif args.resume_from_checkpoint is not None and not os.path.isdir(args.resume_from_checkpoint):
        raise InputError(f"{args.resume_from_checkpoint} is not a checkpoint folder.")
    if args.push_to_hub and args.process_index == 0:
        args.push_to_hub = hub_is_ready(args)
    with args.main_process_first(desc="tokenization"):
        rows = tokenized_rows(
            task.name, model_name, data_args.data_dir, data_args.max_length, data_args.pad_to_max_length
        )
    splits = split_as_told(rows, data_args)
    check_batches(splits, args)
    tokenizer = load_tokenizer(model_name)
    set_seed(args.seed)  # the classification head is drawn here
    model = load_model(model_name, task)
    check_optimizer(model, args)
    trainer = GlueTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        compute_metrics=compute_metrics_for(task),
        callbacks=[LogWhereSaved()],
    )
    return trainer, splits


def run(trainer: GlueTrainer, splits: DatasetDict, task: Task) -> dict[str, Any]:
    """Train, save the model, evaluate it on each split but `train`, and return the record of it.

    The record has `metrics` by split, the `history` of training, `seconds` and `examples_per_second` of training
    (None if it was resumed), `peak_memory_mib`, whether it has `diverged`, the names of the regularized `layers`, the
    `environment`, and the resolved arguments as `config`, but for the folder, which may be moved.

    Raises:
        DamagedCheckpointError: nothing could be trained from `args.resume_from_checkpoint`.
    """
    args = trainer.args
    reset_peak_memory()
    trained = _train(trainer)
    trainer.save_model(_internal_call=True)  # whoever calls this pushes, when the card has the results
    trainer.save_state()
    whole = args.resume_from_checkpoint is None
    metrics = {name: _evaluate(trainer, rows, name, task) for name, rows in splits.items() if name != "train"}
    return {
        "metrics": metrics,
        "seconds": trained["train_runtime"] if whole else None,
        "examples_per_second": trained["train_samples_per_second"] if whole else None,
        "peak_memory_mib": peak_memory_mib(),
        "diverged": _has_diverged(trainer, metrics),
        "layers": trainer.lbe_layer_names,
        "history": history(trainer.state),
        "environment": environment(),
        "config": {name: value for name, value in args.to_sanitized_dict().items() if name != "output_dir"},
    }


def _train(trainer: GlueTrainer) -> dict[str, float]:
    """Metrics of the training as Trainer reports them."""
    checkpoint = trainer.args.resume_from_checkpoint
    has_trained = HasTrained()
    trainer.add_callback(has_trained)
    try:
        return trainer.train(resume_from_checkpoint=checkpoint).metrics
    except Exception as error:
        if checkpoint is None or has_trained.yes or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedCheckpointError(f"{checkpoint} cannot be resumed from ({reason})") from error


def _has_diverged(trainer: GlueTrainer, metrics: dict[str, dict[str, float]]) -> bool:
    """Whether a weight or an evaluation loss is not finite.

    The training loss does not tell: Trainer leaves out the steps where it is not finite.
    """
    assert trainer.model is not None
    weights_are_finite = all(bool(weight.isfinite().all()) for weight in trainer.model.parameters())
    return not (weights_are_finite and all(math.isfinite(values["loss"]) for values in metrics.values()))


def _evaluate(trainer: GlueTrainer, rows: Dataset, split: str, task: Task) -> dict[str, float]:
    values = trainer.evaluate(rows, metric_key_prefix=split)
    return {name: values[f"{split}_{name}"] for name in ("loss", *task.scores)}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 if a file could not be written, or the push to the Hub failed; 2 for unusable input.

    Other than 0 comes with one line on standard error.
    """
    hub_token = None
    try:
        model_args, data_args, args = parse(sys.argv[1:] if argv is None else argv)
        wants_push, hub_token = args.push_to_hub, args.hub_token
        trainer, splits = prepare(model_args, data_args, args)
    except (ValueError, OSError) as error:
        return _report_error(error, hub_token, 2)
    try:
        record = run(trainer, splits, get_task(data_args.task_name))
        if trainer.is_world_process_zero():
            write_json(Path(str(args.output_dir)) / RESULT_NAME, record)
            _print_record(record, model_args, data_args, args)
        write_card(trainer, model_args, data_args, args, record["metrics"])
    except DamagedCheckpointError as error:
        return _report_error(f"{error}: give an older one, or start without --resume_from_checkpoint.", hub_token, 2)
    except OSError as error:
        return _report_error(error, hub_token, 1)
    if not (wants_push and trainer.is_world_process_zero()):
        return 0
    return push_or_say_why(Path(str(args.output_dir)), PushArguments(hub_token=hub_token))


def _report_error(error: object, hub_token: str | None, code: int) -> int:
    print(f"error: {redact(' '.join(str(error).split()), hub_token)}", file=sys.stderr)
    return code


def _print_record(
    record: dict[str, Any], model_args: ModelArguments, data_args: DataArguments, args: FinetuneArguments
) -> None:
    print(f"\n{data_args.task_name}, {model_args.model_name_or_path}, lbe_beta {args.lbe_beta}, seed {args.seed}")
    for name, metrics in record["metrics"].items():
        print(f"{name:>15}: {', '.join(f'{metric} {value:.4f}' for metric, value in metrics.items())}")
    if record["diverged"]:
        print("The run has diverged: a weight or a loss is not finite, and the scores mean nothing.")
    print(f"model and {RESULT_NAME} saved to {args.output_dir}")
