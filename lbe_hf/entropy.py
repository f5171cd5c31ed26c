"""Batch entropy: how much of a batch a layer lets through (Peer et al., TMLR 2022, https://arxiv.org/abs/2208.01134).

The estimator follows the authors' released code: `H = mean over units of 1/2 * ln(1 + pi * e * var)`, in nats.
Attention masks and tokens as samples extend it; without them the definition is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Samples = Literal["sequence", "token"]

SILENT_ENTROPY = 1e-3
"""Batch entropy in nats below which a layer lets nothing through."""

_PI_E = math.pi * math.e

# Elements of one block of work. On a CPU a block stays in cache while it is read three times; an accelerator wants few
# kernels, and a bound on what they allocate.
_CPU_BLOCK = 2**18
_ACCELERATOR_BLOCK = 2**23


def batch_entropy(x: Tensor, attention_mask: Tensor | None = None, samples: Samples = "sequence") -> Tensor:
    """Batch entropy of one layer's activations.

    Args:
        x: activations, shape `(B, ...)`; for hidden states `(B, T, D)`.
        attention_mask: shape `(B, T)`, nonzero at real tokens. The variance at a position then runs over the rows that
            have a real token there, positions with fewer than two such rows drop out, and the remaining ones weigh as
            many as they have rows, so that the entropy does not depend on how far the batch was padded.
        samples: `"sequence"` (default): the B rows are the samples and every entry of a row is a unit.
            `"token"`: the real tokens (the first two dimensions) are the samples and the features are the units;
            a `(B, D)` tensor has one token a row.

    Returns:
        Entropy in nats, shape `()`, never negative; float32, or float64 for a float64 `x`.

    Raises:
        ValueError: no unit has two samples, the mask does not fit `x`, or `samples` is unknown.

    >>> x = torch.tensor([[0.0], [2.0]])  # one unit, unbiased variance 2
    >>> round(batch_entropy(x).item(), 4)
    1.4458
    """
    return batch_entropies([x], attention_mask, samples)[0]


def batch_entropies(
    activations: Sequence[Tensor], attention_mask: Tensor | None = None, samples: Samples = "sequence"
) -> Tensor:
    """Batch entropies of several layers that saw the same batch, shape `(L,)`; otherwise as `batch_entropy`.

    On an accelerator with an attention mask this waits for the device once, to see that some unit has two samples.
    """
    entropies, measured = measure_entropies(activations, [attention_mask] * len(activations), samples)
    if not bool(measured.all()):
        raise ValueError(
            "Batch entropy needs at least two samples for some unit: pass a batch of two or more rows, "
            "or samples='token' to count the tokens of long sequences as samples."
        )
    return entropies


@dataclass(frozen=True)
class Moments:
    """What the samples of one layer's units come to. The mean is the sum of two floats: see `_BatchEntropy`."""

    count: Tensor  # (units, 1), samples of each unit
    mean: Tensor  # (units, features)
    mean_rest: Tensor  # (units, features)
    squares: Tensor  # (units, features), summed squared deviations from the mean


Merge = Callable[[list[Moments], Samples], Iterable[Moments]]
"""Makes moments of these samples and others out of those of these samples, layer by layer; units may be appended."""


def measure_entropies(
    activations: Sequence[Tensor],
    attention_masks: Sequence[Tensor | None],
    samples: Samples = "sequence",
    merge: Merge | None = None,
) -> tuple[Tensor, Tensor]:
    """Batch entropies where each layer has its own mask, without waiting for the device.

    Args:
        merge: brings in samples that are not in `activations`.

    Returns:
        `(entropies, measured)`, both of shape `(L,)`. Where no unit of a layer has two samples, `measured` is False,
        the entropy 0 and its gradient 0.
    """
    if not activations:
        raise ValueError("Batch entropy needs the activations of at least one layer.")
    if samples not in get_args(Samples):
        raise ValueError(f"samples must be one of {get_args(Samples)}, not {samples!r}.")
    plans: dict[tuple[int, int, int, torch.device], _Plan] = {}
    layers: list[tuple[Tensor, _Plan]] = []
    for x, mask in zip(activations, attention_masks, strict=True):
        units = _as_units(x, samples)
        rows, positions, _ = units.shape
        if mask is not None and mask.shape != (rows, positions):
            raise ValueError(
                f"The attention mask has shape {tuple(mask.shape)}, the activations {tuple(x.shape)}: "
                "the mask must be (B, T) for activations (B, T, ...)."
            )
        # Layers of one model nearly always share the mask: what it implies is worked out once.
        key = (id(mask), rows, positions, x.device)
        if key not in plans:
            plans[key] = _Plan.of(rows, positions, mask, samples, x.device)
        layers.append((units, plans[key]))
    every: Iterable[Moments] = (_moments(units.detach(), plan) for units, plan in layers)
    if merge is not None:
        every = merge(list(every), samples)
    entropies, measured = [], []
    for x, (units, plan), moments in zip(activations, layers, every, strict=True):
        if merge is not None:
            plan = plan.with_samples(moments.count)
        entropy: Tensor = _BatchEntropy.apply(units, plan, moments)  # type: ignore[no-untyped-call]
        _run_backward_beside(entropy, x)
        entropies.append(entropy)
        measured.append(plan.measured)
    device = entropies[0].device
    return torch.stack([h.to(device) for h in entropies]), torch.stack([m.to(device) for m in measured])


def _as_units(x: Tensor, samples: Samples) -> Tensor:
    """`x` as `(rows, positions, features)`, a view where its memory layout allows one."""
    if not x.is_floating_point():
        raise ValueError(f"Batch entropy needs floating point activations, not {x.dtype}.")
    if x.dim() < 2:
        raise ValueError(f"Batch entropy needs activations of shape (B, ...), not {tuple(x.shape)}.")
    if x.dim() == 2:
        return x.unsqueeze(1 if samples == "token" else 2)
    return x.flatten(2)


@dataclass(frozen=True)
class _Plan:
    """Which entries of `(rows, positions, features)` activations are samples of one unit, and what the unit weighs."""

    pad: Tensor | None  # (rows, positions, 1), True where there is no token
    first: Tensor | None  # (positions,), a real row of each position; None: the first row
    rows: Tensor  # (positions, 1), real rows at each position
    count: Tensor  # (positions, 1) or (1, 1), samples of each unit
    weight: Tensor  # like count, a unit's share in the mean; sums to 1, or to 0 where no unit has two samples
    measured: Tensor  # (), whether any unit has two samples
    pool_positions: bool

    @staticmethod
    def of(rows: int, positions: int, mask: Tensor | None, samples: Samples, device: torch.device) -> _Plan:
        pool = samples == "token"
        if mask is None:
            pad = first = None
            real = torch.full((positions, 1), float(rows), device=device)
        else:
            pad = (mask.to(device) == 0).unsqueeze(-1)
            first = (mask.to(device) != 0).long().argmax(0)
            real = rows - pad.sum(0).to(torch.float32)
        count = real.sum(0, keepdim=True) if pool else real
        return _Plan(pad, first, real, count, *_weigh(count), pool)

    def with_samples(self, count: Tensor) -> _Plan:
        """The same entries as part of units that have these numbers of samples."""
        weight, measured = _weigh(count)
        return replace(self, count=count, weight=weight, measured=measured)

    def blocks(self, x: Tensor) -> Iterator[tuple[slice, Tensor | None]]:
        """Ranges of positions small enough to work on at once, each with its part of the padding mask."""
        on_cpu = x.device.type == "cpu"
        rows, positions, features = x.shape
        step = max(1, (_CPU_BLOCK if on_cpu else _ACCELERATOR_BLOCK) // max(1, rows * features))
        for start in range(0, positions, step):
            block = slice(start, min(start + step, positions))
            pad = None if self.pad is None else self.pad[:, block]
            # Filling costs as much as all the rest of a block; asking is free only where the mask is on the host.
            if on_cpu and pad is not None and not bool(pad.any()):
                pad = None
            yield block, pad


def _weigh(count: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each unit in the mean, and whether there is one to share."""
    usable = torch.where(count >= 2, count, 0.0)
    total = usable.sum()
    return usable / total.clamp(min=1), total > 0


class _BatchEntropy(torch.autograd.Function):
    """Entropy of `(rows, positions, features)` activations whose moments are known.

    Kept for backward, beside the activations themselves: three floats a unit, whatever the dtype of the activations.
    The mean is kept as a sum of two floats, since one float32 cannot hold it closely enough to centre activations
    whose mean is a thousand times their deviation.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _Plan, moments: Moments) -> Tensor:
        variance = moments.squares / (plan.count - 1).clamp(min=1)
        entropy = 0.5 * torch.log1p(_PI_E * variance)
        slope = plan.weight * _PI_E / ((1 + _PI_E * variance) * (plan.count - 1).clamp(min=1)) / x.shape[2]
        ctx.save_for_backward(x, moments.mean, moments.mean_rest, slope)
        ctx.plan = plan
        return (plan.weight * entropy.mean(1, keepdim=True)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        x, mean, mean_rest, slope = ctx.saved_tensors
        slope = slope * grad_output
        grad = torch.empty_like(x)
        for block, pad in ctx.plan.blocks(x):
            unit = slice(None) if ctx.plan.pool_positions else block
            part = x[:, block].to(mean.dtype) - mean[unit]
            part.sub_(mean_rest[unit]).mul_(slope[unit])
            if pad is not None:
                part.masked_fill_(pad, 0)
            grad[:, block] = part
        return grad, None, None


def _moments(x: Tensor, plan: _Plan) -> Moments:
    """Moments of each unit; `x` is read once from main memory.

    Deviations are taken from one real row of each position, which is as near the mean as the data are wide.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if plan.first is None:
        pivot = x[0].to(dtype)
    else:
        pivot = x[plan.first, torch.arange(x.shape[1], device=x.device)].to(dtype)
        pivot.masked_fill_(plan.rows == 0, 0)
    rows = plan.rows.clamp(min=1)
    rest, squares = torch.empty_like(pivot), torch.empty_like(pivot)
    for block, pad in plan.blocks(x):
        part = x[:, block].to(dtype) - pivot[block]
        if pad is not None:
            part.masked_fill_(pad, 0)
        torch.div(part.sum(0), rows[block], out=rest[block])
        part.sub_(rest[block])
        if pad is not None:
            part.masked_fill_(pad, 0)
        torch.sum(part.square_(), 0, out=squares[block])
    if not plan.pool_positions:
        return Moments(plan.count, pivot, rest, squares)
    # The deviations of all tokens from their common mean are those within a position plus those between positions.
    # Taken from a real token, so that the deviations of constant features are exactly zero.
    share = plan.rows / plan.count.clamp(min=1)
    pooled = pivot.index_select(0, (plan.rows > 0).long().argmax(0))
    between = (pivot - pooled) + rest
    pooled_rest = (share * between).sum(0, keepdim=True)
    squares = squares + plan.rows * (between - pooled_rest).square()
    return Moments(plan.count, pooled, pooled_rest, squares.sum(0, keepdim=True))


def _run_backward_beside(entropy: Tensor, x: Tensor) -> None:
    """Let the gradient of `entropy` be computed when backward comes to the layer that made `x`.

    Autograd runs the nodes made last first, and the entropies are made after the whole forward pass: the gradients of
    all layers would be held from the start of backward. A scheduling hint only, which PyTorch may stop offering.
    """
    if entropy.grad_fn is None or x.grad_fn is None or torch.compiler.is_compiling():
        return
    node, maker = entropy.grad_fn, x.grad_fn
    if hasattr(node, "_set_sequence_nr") and hasattr(maker, "_sequence_nr"):
        node._set_sequence_nr(maker._sequence_nr())
