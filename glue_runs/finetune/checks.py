"""Finds values that no run can be trained with, before the first step."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer

from lbe_hf import LBETrainer
from lbe_hf.checks import check_activations
from lbe_hf.hidden_states import HiddenStates
from lbe_hf.target_modules import TargetModules
from lbe_hf.training_args import LBEArguments

from ..errors import InputError
from ..tasks.glue import get_task

_SEED = (0, 2**32 - 1)
_LARGEST = 2**31 - 1
_AT_LEAST_ONE = (1, _LARGEST)
_NOT_NEGATIVE = (0, math.inf)

_RANGES = {
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "per_device_eval_batch_size": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "eval_accumulation_steps": _AT_LEAST_ONE,
    "max_length": _AT_LEAST_ONE,
    "max_train_samples": _AT_LEAST_ONE,
    "max_eval_samples": _AT_LEAST_ONE,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "dataloader_prefetch_factor": _AT_LEAST_ONE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_epsilon": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "label_smoothing_factor": (0, 1),
    "seed": _SEED,
    "data_seed": _SEED,
    "split_seed": _SEED,
}
"""Lowest and highest allowed value of a setting; infinity itself is never allowed."""

_POSITIVE = ("learning_rate", "logging_steps", "save_steps", "eval_steps")
_BETWEEN_0_AND_1 = ("validation_fraction",)
_BELOW_1 = ("adam_beta1", "adam_beta2")

_NEEDED_FOR_METRICS = {"prediction_loss_only": False, "batch_eval_metrics": False, "eval_do_concat_batches": True}
_LABEL_NAMES = ["labels"]
_CHECKPOINTING = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
"""One argument, under the names that it has in different versions of transformers."""

_MAPPINGS = ("lr_scheduler_kwargs", *_CHECKPOINTING)


def check_values(data_args: Any, args: Any) -> None:
    """Check the values of `DataArguments` and `FinetuneArguments`.

    Raises:
        InputError: there is no such task, or a value is outside its range; the message names the first such value.
    """
    task = get_task(data_args.task_name)
    values = {**vars(data_args), **vars(args)}
    for name, (lowest, highest) in _RANGES.items():
        at_most = "" if highest in (math.inf, _LARGEST) else f" and at most {highest}"
        _require(name, values[name], f"at least {lowest}{at_most}", lambda v, a=lowest, b=highest: a <= v <= b)
    for name in _POSITIVE:
        _require(name, values[name], "positive", lambda v: v > 0)
    for name in _BETWEEN_0_AND_1:
        _require(name, values[name], "between 0 and 1", lambda v: 0 < v < 1)
    for name in _BELOW_1:
        _require(name, values[name], "at least 0 and below 1", lambda v: 0 <= v < 1)
    steps = "at least 1, or -1 to train by epochs"
    _require("max_steps", args.max_steps, steps, lambda v: 1 <= v <= _LARGEST or v == -1)
    if args.max_steps == -1:
        _require("num_train_epochs", args.num_train_epochs, "positive", lambda v: v > 0)
    for name, value in values.items():
        if isinstance(value, int):
            _require(name, value, "below 2^63", lambda v: abs(v) < 2**63)
    for name, needed in _NEEDED_FOR_METRICS.items():
        if values[name] != needed:
            raise InputError(f"{name} must be {str(needed).lower()}, otherwise there are no metrics: leave it out.")
    if args.label_smoothing_factor > 0 and not task.labels:
        raise InputError(f"label_smoothing_factor needs labels, but {task.name} is a regression: leave it out.")
    for name in _MAPPINGS:
        if not isinstance(values.get(name), dict | None):
            raise InputError(f"{name} must be a JSON mapping, not {values[name]}.")
    if args.label_names not in (None, _LABEL_NAMES):
        raise InputError(f"label_names must be {_LABEL_NAMES[0]}, not {' '.join(args.label_names)}: leave it out.")
    metrics = ["loss", *task.scores]
    best = args.metric_for_best_model
    if best is not None and best.removeprefix("eval_") not in metrics:
        raise InputError(f"metric_for_best_model must be one of {', '.join(metrics)}, not {best}.")


def check_processes(args: Any) -> None:
    """`InputError` if this process would train on several GPUs, which `LBETrainer` does not support."""
    if args.n_gpu > 1:
        raise InputError(
            "A process trains on one GPU: select one with CUDA_VISIBLE_DEVICES=0, or use all with "
            "`accelerate launch -m glue_runs.finetune`."
        )


def check_batches(splits: Mapping[str, Sized], args: Any) -> None:
    """Raise an `InputError` if `dataloader_drop_last` leaves a split without a batch."""
    if not args.dataloader_drop_last:
        return
    for name, examples in splits.items():
        batch_size = args.per_device_train_batch_size if name == "train" else args.per_device_eval_batch_size
        if len(examples) < batch_size:
            kind = "train" if name == "train" else "eval"
            raise InputError(
                f"dataloader_drop_last leaves out all {len(examples)} {name} examples, which do not fill a batch of "
                f"{batch_size}: give a smaller --per_device_{kind}_batch_size."
            )


def check_lengths(tokenizer: Any, config: Any, max_length: int) -> None:
    """Raise an `InputError` if the encoder cannot be given padded batches of `max_length` tokens."""
    if tokenizer.pad_token is None:
        raise InputError("The tokenizer has no padding token: give an encoder, whose tokenizer has one.")
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise InputError(f"max_length must be at most {positions}, the positions of the encoder, not {max_length}.")


def check_trainer(trainer: Trainer) -> None:
    """Create what training needs, and discard it: arguments that a library refuses are found before training.

    Raises:
        InputError: the optimizer, its schedule, the data loader or activation checkpointing refuses its arguments, or
            is not installed.
    """
    args: Any = trainer.args
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):  # which create both for the sharded model
        with _refused(f"optim {args.optim.value}", optim_args=args.optim_args):
            trainer.create_optimizer()
        with _refused(
            f"lr_scheduler_type {args.lr_scheduler_type.value}", lr_scheduler_kwargs=args.lr_scheduler_kwargs
        ):
            trainer.create_scheduler(num_training_steps=100)
        trainer.optimizer = trainer.lr_scheduler = None
    with _refused("dataloader_persistent_workers"):
        DataLoader(
            [0],  # type: ignore[arg-type]
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
        )
    with _refused("use_liger_kernel"):
        if args.use_liger_kernel:
            importlib.import_module("liger_kernel")
    for name in _CHECKPOINTING:
        given = getattr(args, name, None) or {}
        options = {key: value for key, value in given.items() if key not in ("every_n_layers", "offload")}
        with _refused(f"{name} {given}"):  # Trainer uses these two itself, PyTorch the others
            checkpoint(
                torch.nn.Identity(), torch.zeros(1, requires_grad=True), **(options or {"use_reentrant": False})
            )


def check_first_batch(trainer: LBETrainer) -> None:
    """Find before training what `LBETrainer` finds only in its first batch: measure the layers for two examples.

    Raises:
        ValueError: the settings of LBE do not fit the layers or the batch size.
    """
    args, settings = trainer.args, LBEArguments.of(trainer.args)
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled  # the model cannot be called before training
    if sharded or not (settings.lbe_beta > 0 or settings.lbe_log_entropy):
        return
    model: Any = trainer.model
    examples: Any = trainer.train_dataset
    examples = examples.select(range(min(2, args.per_device_train_batch_size, len(examples))))
    batch: Any = trainer.data_collator(list(trainer._remove_unused_columns(examples)))
    targets = settings.lbe_target_modules
    source = HiddenStates(model) if targets is None else TargetModules(model, targets)
    model.eval()  # dropout would draw random numbers
    with source.listen() as recording:
        model(**batch.to(model.device))
    check_activations(
        recording.take(settings.lbe_layers),
        settings,
        first=True,
        penalized=settings.lbe_beta > 0,
        synced=settings.lbe_sync_batch and args.world_size > 1,
        batch_size=args.per_device_train_batch_size,
    )


@contextmanager
def _refused(what: str, **options: object) -> Iterator[None]:
    """Turn any error of a library into an `InputError` that names the argument and its options."""
    try:
        yield
    except Exception as error:
        given = "".join(f" with {name} {value}" for name, value in options.items() if value is not None)
        raise InputError(f"{what}{given} cannot be used: {error}") from error


def is_number(value: float) -> bool:
    """Whether the value is finite; integers always are, at any number of digits."""
    return isinstance(value, int) or math.isfinite(value)


def _require(name: str, value: float | None, rule: str, holds: Any) -> None:
    """Raise an `InputError` unless the value obeys the rule; None stands for a value that was not given."""
    if value is not None and not (is_number(value) and holds(value)):
        raise InputError(f"{name} must be {rule}, not {value}.")
