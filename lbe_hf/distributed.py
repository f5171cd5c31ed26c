"""Batch entropies over the samples of all processes, equal to those of one process with the whole batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from .entropy import measure_entropies
from .moments import Moments, Samples


def measure_entropies_over_processes(
    activations: Iterable[Tensor],
    attention_masks: Sequence[Tensor | None],
    samples: Samples = "sequence",
    *,
    held_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """As `measure_entropies`, over the parts of the batch on all processes of the default group.

    Processes exchange moments, not activations: 12 bytes for each unit (a position and feature; a feature with
    `samples="token"`) and 8 for each position, in two sums over processes, and one float a layer in the backward
    pass. With `samples="sequence"` they first exchange the length of the longest batch, which synchronizes with the
    device. A process whose batch is shorter has no samples at the additional positions.

    The value equals that of one process with the whole batch. The gradient is that of the sum of the losses of all
    processes, as in SyncBatchNorm; DistributedDataParallel and FSDP average it over processes, which gives the
    gradient of the mean loss. With `loss = task_loss * (1 + penalty)` and the same penalty on each process, that mean
    is `mean(task_loss) * (1 + penalty)`. It equals the loss of one process with the whole batch if
    `mean(task_loss)` does: if all processes have the same number of examples, or divide by the number of items on all
    processes (`num_items_in_batch`). Otherwise it deviates as it does without the penalty, because each process has
    the same weight regardless of its number of examples.

    Every process must call this function with the same layers. Without a process group it is `measure_entropies`.

    Raises:
        ValueError: the activations of the processes have different numbers of features.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return measure_entropies(activations, attention_masks, samples, held_dtype=held_dtype)
    entropies, measured = measure_entropies(activations, attention_masks, samples, merge=_merge, held_dtype=held_dtype)
    summed: Tensor = _SumGradients.apply(entropies)  # type: ignore[no-untyped-call]
    return summed, measured


class _SumGradients(torch.autograd.Function):
    """Identity on the entropies, which are equal on all processes; sums their gradients over processes."""

    @staticmethod
    def forward(ctx: Any, entropies: Tensor) -> Tensor:
        return entropies.view_as(entropies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (summed,) = _sum_over_processes([grad_output])
        return summed


def _merge(layers: list[Moments], samples: Samples) -> Iterator[Moments]:
    """Moments over all processes: first the means, then the squares about them (Chan et al., 1979).

    Means are summed in float64, which can represent the sum of their two floats. Squares need no extra precision,
    because they are all positive.
    """
    longest = [len(own.count) for own in layers] if samples == "token" else _longest(layers)
    means = [own.mean.double() + own.mean_rest for own in layers]
    parts = [
        pad(own.count * torch.cat([torch.ones_like(own.count), mean], 1), (0, 0, 0, length - len(mean)))
        for own, mean, length in zip(layers, means, longest, strict=True)
    ]
    first = [(part[:, :1], part[:, 1:] / part[:, :1].clamp(min=1)) for part in _sum_over_processes(parts)]
    parts = [
        pad(own.squares + own.count * (mean - common[: len(mean)]).square(), (0, 0, 0, len(common) - len(mean)))
        for own, mean, (_, common) in zip(layers, means, first, strict=True)
    ]
    parts = [part.to(own.squares.dtype) for own, part in zip(layers, parts, strict=True)]
    for own, (count, mean), squares in zip(layers, first, _sum_over_processes(parts), strict=True):
        rounded = mean.to(own.mean.dtype)
        yield Moments(count.to(own.count.dtype), rounded, (mean - rounded).to(own.mean.dtype), squares)


def _longest(layers: list[Moments]) -> list[int]:
    """Maximum number of units of each layer over the processes."""
    units, features = [len(own.count) for own in layers], [own.mean.shape[1] for own in layers]
    lengths = torch.tensor([units, features, [-count for count in features]], device=layers[0].count.device)
    dist.all_reduce(lengths, dist.ReduceOp.MAX)
    longest: list[int]
    longest, most, fewest = lengths.tolist()
    if most != [-count for count in fewest]:
        raise ValueError(
            "lbe_sync_batch needs the same number of features on all processes, but the layers have "
            f"{[-count for count in fewest]} to {most}: use inputs of one size, or lbe_sync_batch=False."
        )
    return longest


def _sum_over_processes(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Sums over processes, exchanged as one tensor."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, torch.split(flat, sizes), strict=True):
        yield part.view_as(tensor).to(tensor.dtype)
