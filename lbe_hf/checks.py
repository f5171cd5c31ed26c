"""Early checks for settings and models that cannot be regularized or resumed as the user expects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from .activations import Activation, misfits_in_words, not_by_example_in_words
from .gradients import train_nothing
from .models import in_data_parallel
from .targets import TARGETS_NAME
from .training_args import LBEArguments

UNMEASURED = (
    "The penalty was not applied to a training batch with a single example, or without a position at which two "
    "examples have a real token: it has no variance over examples. lbe_samples='token' also measures such batches."
)


class FirstBatchError(ValueError):
    """The first training batch shows that the settings do not fit the model or the batches."""


def check_training(trainer: Trainer) -> None:
    """Check the trainer before training starts.

    Raises:
        ValueError: the penalty does not work with the trainer or its arguments.
    """
    args = trainer.args
    if in_data_parallel(args, trainer.model):
        raise ValueError(
            "LBETrainer does not support several GPUs in one process (DataParallel): start it with "
            "`accelerate launch` or `torchrun`, or select one GPU with CUDA_VISIBLE_DEVICES."
        )
    if trainer.is_deepspeed_enabled and trainer.accelerator.mixed_precision == "fp16":
        raise ValueError(
            "DeepSpeed scales the loss in fp16 by a factor that is not available to the learnable targets: train in "
            "bf16, in fp32, or without DeepSpeed."
        )
    cached = [type(loss).__name__ for loss in _losses(getattr(trainer, "loss", None))]
    cached = [name for name in cached if name.startswith("Cached")]
    if cached:
        raise ValueError(
            f"{cached[0]} computes the embeddings without gradients and again inside backward, where the penalty "
            f"cannot be added: use {cached[0].removeprefix('Cached')} instead, with smaller batches."
        )


def _losses(loss: Any) -> Iterator[nn.Module]:
    """The loss modules of a sentence-transformers trainer, including nested ones, without their model."""
    if isinstance(loss, dict):
        for one in loss.values():
            yield from _losses(one)
    elif isinstance(loss, nn.Module) and hasattr(loss, "forward"):
        yield loss
        for name, inner in loss.named_children():
            if name != "model":
                yield from _losses(inner)


def check_activations(
    activations: Sequence[Activation],
    settings: LBEArguments,
    *,
    first: bool,
    penalized: bool,
    synced: bool,
    batch_size: int,
) -> dict[str, str]:
    """Warnings, keyed by kind, about activations that cannot be measured or trained as expected.

    Args:
        first: whether these are the activations of the first micro-batch of a run.
        penalized: whether a penalty is applied to them.
        synced: whether they are measured together with those of other processes.
        batch_size: examples in a full micro-batch. One example may have several rows, as a pair of answers in DPO.

    Raises:
        FirstBatchError: all batches or some modules have only one sample, or the penalty reaches no trainable
            parameter.
    """
    warnings = {}
    names = dict.fromkeys(a.name for a in activations)
    single = names.keys() - {a.name for a in activations if a.most_samples(settings.lbe_samples) >= 2}
    if single and len(single) < len(names) and first:
        raise FirstBatchError(
            f"These modules have one sample in a batch of several examples: {', '.join(sorted(single))}. Remove them "
            "from lbe_target_modules, or select layers with lbe_layers."
        )
    if single and not synced:
        if first and batch_size == 1:
            raise FirstBatchError(
                "A single example has no variance over examples: with per_device_train_batch_size=1 use "
                "lbe_samples='token', or use a larger batch."
            )
        warnings["unmeasured"] = UNMEASURED
    misfits = dict.fromkeys(a.name for a in activations if a.is_misfit)
    if misfits and settings.lbe_ignore_padding:
        warnings["misfits"] = misfits_in_words(misfits)
    elsewhere = dict.fromkeys(a.name for a in activations if a.is_not_by_example)
    if elsewhere and settings.lbe_samples == "sequence":
        warnings["not by example"] = not_by_example_in_words(elsewhere)
    if first and penalized:
        untrained = train_nothing(a.value for a in activations)
        unreached = ", ".join(a.name for a, nothing in zip(activations, untrained, strict=True) if nothing)
        cause = (
            "whose gradient reaches no trainable parameter (they are frozen, or use reentrant gradient "
            f"checkpointing; set use_reentrant=False): {unreached}."
        )
        if all(untrained):
            raise FirstBatchError(f"Nothing would be regularized: the penalty applies only to layers {cause}")
        if any(untrained):
            warnings["untrained"] = f"The penalty cannot train layers {cause}"
    return warnings


def missing_files(trainer: Trainer, checkpoint: Path, *, with_targets: bool) -> list[str]:
    """Names of the files missing from a checkpoint without which a resumed run differs from an uninterrupted one."""
    rng = f"rng_state_{trainer.args.process_index}.pth" if trainer.args.world_size > 1 else "rng_state.pth"
    missing = [name for name in [rng, *[TARGETS_NAME] * with_targets] if not (checkpoint / name).is_file()]
    if trainer.is_deepspeed_enabled:  # stores the scheduler and optimizer in its own files
        return missing
    if not (checkpoint / "scheduler.pt").is_file():
        missing.append("scheduler.pt")
    if not any(checkpoint.glob("*optimizer*")):  # optimizer.pt, or the shards of a sharded optimizer
        missing.append("optimizer.pt")
    return missing
