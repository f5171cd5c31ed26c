"""Fine-tunes one encoder on one GLUE task with `GlueTrainer`."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import DataCollatorWithPadding, TrainerCallback, set_seed

from ..errors import InputError
from ..tasks.data import load_official, split, tokenize
from ..tasks.glue import Task, get_task
from ..tasks.metrics import compute_metrics_for
from .arguments import DataArguments, FinetuneArguments, ModelArguments
from .checkpoints import DamagedCheckpointError, last_checkpoint
from .checks import check_batches, check_lengths, check_trainer
from .encoder import load_model, load_tokenizer
from .output import check_output_dir
from .push import hub_is_ready
from .record import environment, history, peak_memory_mib, reset_peak_memory
from .trainer import GlueTrainer


class LogWhereSaved(TrainerCallback):
    """Logs at the end of each epoch and at each checkpoint, so that a resumed run logs the same lines."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = True


class HasTrained(TrainerCallback):
    """Records whether training has completed a step, or had none left to make."""

    def __init__(self) -> None:
        self.yes = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.yes = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.yes = True


@lru_cache
def tokenized_examples(
    task_name: str, model_name_or_path: str, data_dir: str | None, max_length: int, pad_to_max_length: bool
) -> DatasetDict:
    """The official splits as token ids, cached for the other runs of the process."""
    task = get_task(task_name)
    official = load_official(task, data_dir)
    return tokenize(official, task, load_tokenizer(model_name_or_path), max_length, pad_to_max_length)


def split_examples(examples: DatasetDict, data_args: DataArguments) -> DatasetDict:
    """The splits of a run, as `data.split` makes them from the official ones."""
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
    """Everything up to the first training step: the trainer, and the tokenized examples by split.

    Raises:
        InputError: something in the arguments or the data cannot be run, or the output folder cannot be written.
        Exception: a library refuses an argument in its own way.
    """
    check_output_dir(str(args.output_dir))
    task, model_name = get_task(data_args.task_name), model_args.model_name_or_path
    if args.resume_from_checkpoint == "last":
        args.resume_from_checkpoint = last_checkpoint(str(args.output_dir), args.lbe_beta)
        if args.resume_from_checkpoint is None:
            raise InputError(f"{args.output_dir} has no complete checkpoint: start without --resume_from_checkpoint.")
    elif args.resume_from_checkpoint is not None and not os.path.isdir(args.resume_from_checkpoint):
        raise InputError(f"{args.resume_from_checkpoint} is not a checkpoint folder.")
    if args.push_to_hub and args.process_index == 0:
        args.push_to_hub = hub_is_ready(args)
    with args.main_process_first(desc="tokenization"):
        examples = tokenized_examples(
            task.name, model_name, data_args.data_dir, data_args.max_length, data_args.pad_to_max_length
        )
    splits = split_examples(examples, data_args)
    check_batches(splits, args)
    tokenizer = load_tokenizer(model_name)
    set_seed(args.seed)  # the classification head is drawn here
    model = load_model(model_name, task)
    check_lengths(tokenizer, model.config, data_args.max_length)
    trainer = GlueTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        compute_metrics=compute_metrics_for(task),
        preprocess_logits_for_metrics=_only_logits,
        callbacks=[LogWhereSaved()],
    )
    check_trainer(trainer)
    return trainer, splits


def run(trainer: GlueTrainer, splits: DatasetDict, task: Task) -> dict[str, Any]:
    """Train, save the model, evaluate it on each split except `train`, and return the record of the run.

    The record has `metrics` by split, the `history` of training, `seconds` and `examples_per_second` of training
    (None if it was resumed), `peak_memory_mib`, whether it has `diverged`, the names of the regularized `layers`, the
    `environment`, and the resolved arguments as `config`, except the output folder, which may be moved.

    Raises:
        DamagedCheckpointError: training could not be resumed from `args.resume_from_checkpoint`.
    """
    args = trainer.args
    reset_peak_memory(args.device)
    trained = _train(trainer)
    trainer.save_model(_internal_call=True)  # the caller pushes, once the card has the results
    trainer.save_state()
    whole = args.resume_from_checkpoint is None
    metrics = {name: _evaluate(trainer, examples, name, task) for name, examples in splits.items() if name != "train"}
    return {
        "metrics": metrics,
        "seconds": trained["train_runtime"] if whole else None,
        "examples_per_second": trained["train_samples_per_second"] if whole else None,
        "peak_memory_mib": peak_memory_mib(args.device),
        "diverged": _has_diverged(trainer, metrics),
        "layers": trainer.lbe_layer_names,
        "history": history(trainer.state),
        "environment": environment(args.device),
        "config": {name: value for name, value in args.to_sanitized_dict().items() if name != "output_dir"},
    }


def _only_logits(outputs: Any, labels: Any) -> Any:
    """Without what some encoders return beside the logits, as hidden states."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _train(trainer: GlueTrainer) -> dict[str, float]:
    """The metrics that Trainer reports for the training."""
    checkpoint = trainer.args.resume_from_checkpoint
    has_trained = HasTrained()
    trainer.add_callback(has_trained)
    try:
        return trainer.train(resume_from_checkpoint=checkpoint).metrics
    except Exception as error:
        if checkpoint is None or has_trained.yes or _is_of_the_machine(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedCheckpointError(f"{checkpoint} cannot be resumed from ({reason})") from error


def _is_of_the_machine(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "CUDA error"))


def _has_diverged(trainer: GlueTrainer, metrics: dict[str, dict[str, float]]) -> bool:
    """Whether a weight or an evaluation loss is not finite.

    The training loss does not show it: Trainer leaves out the steps at which it is not finite.
    """
    assert trainer.model is not None
    weights_are_finite = all(bool(weight.isfinite().all()) for weight in trainer.model.parameters())
    return not (weights_are_finite and all(math.isfinite(values["loss"]) for values in metrics.values()))


def _evaluate(trainer: GlueTrainer, examples: Dataset, split: str, task: Task) -> dict[str, float]:
    values = trainer.evaluate(examples, metric_key_prefix=split)
    return {name: values[f"{split}_{name}"] for name in ("loss", *task.scores)}
