"""What keeps a training from being regularized or resumed as the user expects, found as early as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from .activations import Activation
from .gradients import train_nothing
from .targets import TARGETS_NAME
from .training_args import LBEArguments

UNMEASURED = (
    "A training batch has one row, or no position with two real tokens: without a variance over rows "
    "it goes without the penalty. lbe_samples='token' measures single rows."
)


def check_training(trainer: Trainer, settings: LBEArguments, *, synced: bool) -> None:
    """Raise a ValueError, with its remedy, for what the penalty cannot work with; arguments as below."""
    args = trainer.args
    if args.n_gpu > 1 or isinstance(trainer.model, nn.DataParallel):
        raise ValueError(
            "LBETrainer does not run on several GPUs in one process (DataParallel): start it with "
            "`accelerate launch` or `torchrun`, or choose one GPU with CUDA_VISIBLE_DEVICES."
        )
    if trainer.is_deepspeed_enabled and trainer.accelerator.mixed_precision == "fp16":
        raise ValueError(
            "DeepSpeed scales the loss in fp16 by a factor that the learnable targets do not see: train in bf16, "
            "in fp32, or without DeepSpeed."
        )
    if args.per_device_train_batch_size == 1 and settings.lbe_samples == "sequence" and not synced:
        raise ValueError(
            "One row has no variance over rows: use lbe_samples='token' with per_device_train_batch_size=1, "
            "or a larger batch."
        )
    cached = [type(loss).__name__ for loss in _losses(getattr(trainer, "loss", None))]
    cached = [name for name in cached if name.startswith("Cached")]
    if cached:
        raise ValueError(
            f"{cached[0]} computes the embeddings without gradient and again inside backward, where the penalty "
            f"cannot be added: use {cached[0].removeprefix('Cached')} instead, with smaller batches."
        )


def _losses(loss: Any) -> Iterator[nn.Module]:
    """The loss modules of a trainer of sentence-transformers, which may wrap one another; not their model."""
    if isinstance(loss, dict):
        for one in loss.values():
            yield from _losses(one)
    elif isinstance(loss, nn.Module) and hasattr(loss, "forward"):
        yield loss
        for name, inner in loss.named_children():
            if name != "model":
                yield from _losses(inner)


def check_activations(
    activations: Sequence[Activation], settings: LBEArguments, *, first: bool, penalized: bool, synced: bool
) -> dict[str, str]:
    """Warnings, by a name for each kind, about activations that cannot be measured or trained as expected.

    Args:
        first: whether these are the activations of the first micro-batch of a training.
        penalized: whether a penalty is applied to them.
        synced: whether they are measured together with those of other processes.

    Raises:
        ValueError: some modules never have two samples, or the penalty would train nothing.
    """
    warnings = {}
    names = dict.fromkeys(a.name for a in activations)
    single = names.keys() - {a.name for a in activations if a.most_samples(settings.lbe_samples) >= 2}
    if single and len(single) < len(names) and first:
        raise ValueError(
            f"These modules have one sample in a batch of several: {', '.join(sorted(single))}. Leave them out of "
            "lbe_target_modules, or choose layers with lbe_layers."
        )
    if single and not synced:
        warnings["unmeasured"] = UNMEASURED
    misfits = dict.fromkeys(
        a.name for a in activations if a.mask is not None and a.value.dim() > 2 and not a.mask_fits
    )
    if misfits and settings.lbe_ignore_padding:
        warnings["misfits"] = (
            "The padding mask does not have the length of these activations, whose padding is therefore "
            f"measured too: {', '.join(misfits)}."
        )
    if first and penalized:
        untrained = train_nothing(a.value for a in activations)
        unreached = ", ".join(a.name for a, nothing in zip(activations, untrained, strict=True) if nothing)
        cause = (
            "which have no gradient that reaches a trainable parameter (frozen, or inside reentrant "
            f"checkpointing, which use_reentrant=False cures): {unreached}."
        )
        if all(untrained):
            raise ValueError(f"Nothing would be regularized: the penalty applies to layers {cause}")
        if any(untrained):
            warnings["untrained"] = f"The penalty cannot train these layers, {cause}"
    return warnings


def missing_files(trainer: Trainer, checkpoint: Path, *, with_targets: bool) -> list[str]:
    """Names of files that the checkpoint lacks and that resuming needs to end as if it had not been interrupted."""
    rng = f"rng_state_{trainer.args.process_index}.pth" if trainer.args.world_size > 1 else "rng_state.pth"
    missing = [name for name in [rng, *[TARGETS_NAME] * with_targets] if not (checkpoint / name).is_file()]
    if trainer.is_deepspeed_enabled:  # which keeps the others in files of its own
        return missing
    if not (checkpoint / "scheduler.pt").is_file():
        missing.append("scheduler.pt")
    if not any(checkpoint.glob("*optimizer*")):  # optimizer.pt, or what sharded models have in its place
        missing.append("optimizer.pt")
    return missing
