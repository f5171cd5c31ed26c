"""Batch entropy: how much of a batch a layer lets through (Peer et al., TMLR 2022, https://arxiv.org/abs/2208.01134).

The estimator follows the authors' released code: `H = mean over units of 1/2 * ln(1 + pi * e * var)`, in nats.
Attention masks and tokens as samples extend it; without them the definition is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

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
        attention_mask: shape `(B, T)`, nonzero at real tokens, or another mask that `real_tokens` reads. The variance
            at a position then runs over the rows that have a real token there, positions with fewer than two such
            rows drop out, and the remaining ones weigh as many as they have rows, so that the entropy does not depend
            on how far the batch was padded.
        samples: `"sequence"` (default): the B rows are the samples and every entry of a row is a unit.
            `"token"`: the real tokens (the first two dimensions) are the samples and the features are the units;
            a `(B, D)` tensor has one token a row.

    Returns:
        Entropy in nats, shape `()`, never negative; float32, or float64 for a float64 `x`, whose value and gradient
        are exact to 1e-12. It can be differentiated once.

    Raises:
        ValueError: no unit has two samples, `x` has no features, the mask does not fit `x`, or `samples` is unknown.

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
    """Moments of one layer's units over their samples. The mean is the sum of two floats: see `_HalfSquares`."""

    count: Tensor  # (units, 1), samples of each unit
    mean: Tensor  # (units, features)
    mean_rest: Tensor  # (units, features)
    squares: Tensor  # (units, features), summed squared deviations from the mean


Merge = Callable[[list[Moments], Samples], Iterable[Moments]]
"""Makes moments of these samples and others out of those of these samples, layer by layer; units may be appended."""


def measure_entropies(
    activations: Iterable[Tensor],
    attention_masks: Sequence[Tensor | None],
    samples: Samples = "sequence",
    *,
    merge: Merge | None = None,
    held_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Batch entropies where each layer has its own mask, without waiting for the device.

    Args:
        activations: one tensor a layer, each of which is let go before the next one is asked for, unless the backward
            pass needs it or there is a `merge`.
        attention_masks: one a layer, as for `batch_entropy`.
        merge: brings in samples that are not in `activations`.
        held_dtype: floating point type in which wider activations are held for the backward pass, as deviations from
            their mean. The gradient is rounded to it, and nothing holds the activations themselves. Default: hold
            the activations.

    Returns:
        `(entropies, measured)`, both of shape `(L,)`. Where no unit of a layer has two samples, `measured` is False,
        the entropy 0 and its gradient 0.
    """
    if not attention_masks:
        raise ValueError("Batch entropy needs the activations of at least one layer.")
    if samples not in get_args(Samples):
        raise ValueError(f"samples must be one of {get_args(Samples)}, not {samples!r}.")
    plans: dict[Any, _Plan] = {}

    def layers() -> Iterator[_Layer]:
        for x, mask in zip(activations, attention_masks, strict=True):
            units = _as_units(x, samples)
            rows, positions, _ = units.shape
            # Layers of one model nearly always share the mask: what it implies is worked out once.
            key = (id(mask), rows, positions, x.device, torch.promote_types(x.dtype, torch.float32))
            if key not in plans:
                plans[key] = _Plan.of(rows, positions, mask, samples, *key[3:])
            yield _Layer(x, units, plans[key], _moments(units.detach(), plans[key]))

    alike: dict[Any, tuple[_Plan, list[tuple[int, Tensor]]]] = {}  # layers whose units weigh the same
    for index, layer in enumerate(layers() if merge is None else _merged(layers(), merge, samples)):
        half: Tensor = _HalfSquares.apply(layer.units, layer.plan, layer.moments, held_dtype)  # type: ignore[no-untyped-call]
        _run_backward_beside(half, layer.x)
        alike.setdefault((id(layer.plan), half.shape), (layer.plan, []))[1].append((index, half))
    results: dict[int, tuple[Tensor, Tensor]] = {}
    for plan, group in alike.values():
        variance = torch.stack([half for _, half in group]) / ((plan.count - 1).clamp(min=1) / 2)
        entropy = 0.5 * torch.log1p(_PI_E * variance)
        means = (plan.weight * entropy.mean(-1, keepdim=True)).sum((1, 2))
        results |= {index: (mean, plan.measured) for (index, _), mean in zip(group, means, strict=True)}
    device = results[0][0].device
    entropies, measured = zip(*(results[index] for index in range(len(results))), strict=True)
    return torch.stack([h.to(device) for h in entropies]), torch.stack([m.to(device) for m in measured])


class _Layer(NamedTuple):
    x: Tensor
    units: Tensor  # (rows, positions, features)
    plan: _Plan
    moments: Moments


def _merged(layers: Iterable[_Layer], merge: Merge, samples: Samples) -> Iterator[_Layer]:
    """The layers with the moments of these samples and others, and plans that count all of them."""
    own = list(layers)
    plans: dict[int, _Plan] = {}
    for layer, moments in zip(own, merge([layer.moments for layer in own], samples), strict=True):
        if id(layer.plan) not in plans:
            plans[id(layer.plan)] = layer.plan.with_samples(moments.count)
        yield layer._replace(plan=plans[id(layer.plan)], moments=moments)


def real_tokens(attention_mask: Tensor) -> Tensor:
    """Where a mask leaves real tokens: `(B, T)`, boolean, without waiting for the device.

    Args:
        attention_mask: `(B, T)`, nonzero at real tokens, or what is added to attention scores instead: 0 at real
            tokens and negative at padding (floats that are all 0 count as this kind). Also `(B, Q, T)` or
            `(B, heads, Q, T)` of either kind: a position that no query may attend to is padding.

    Raises:
        ValueError: the mask has another number of dimensions.
    """
    if attention_mask.dim() not in (2, 3, 4):
        raise ValueError(
            f"An attention mask must be (B, T), (B, Q, T) or (B, heads, Q, T), not {tuple(attention_mask.shape)}."
        )
    real = attention_mask != 0
    if attention_mask.dtype != torch.bool:
        additive = (attention_mask < 0).any()
        if attention_mask.is_floating_point():
            additive = additive | ~(attention_mask > 0).any()
        real = torch.where(additive, ~real, real)
    return real.flatten(1, -2).any(1) if real.dim() > 2 else real


def _as_units(x: Tensor, samples: Samples) -> Tensor:
    """`x` as `(rows, positions, features)`, a view where its memory layout allows one."""
    if not x.is_floating_point():
        raise ValueError(f"Batch entropy needs floating point activations, not {x.dtype}.")
    if x.dim() < 2 or 0 in x.shape[2:] or (x.dim() == 2 and x.shape[1] == 0):
        raise ValueError(f"Batch entropy needs activations of shape (B, ...) with features, not {tuple(x.shape)}.")
    if x.dim() == 2:
        return x.unsqueeze(1 if samples == "token" else 2)
    return x.flatten(2)


@dataclass(frozen=True)
class _Plan:
    """Which entries of `(rows, positions, features)` activations are samples of one unit, and what the unit weighs."""

    pad: Tensor | None  # (rows, positions, 1), True where there is no token
    first: tuple[Tensor, Tensor] | None  # index of a real row of each position; None: the first row
    rows: Tensor  # (positions, 1), real rows at each position
    count: Tensor  # (positions, 1) or (1, 1), samples of each unit
    weight: Tensor  # like count, a unit's share in the mean; sums to 1, or to 0 where no unit has two samples
    measured: Tensor  # (), whether any unit has two samples
    pool_positions: bool

    @staticmethod
    def of(
        rows: int, positions: int, mask: Tensor | None, samples: Samples, device: torch.device, dtype: torch.dtype
    ) -> _Plan:
        pool = samples == "token"
        if mask is None:
            pad = first = None
            real = torch.full((positions, 1), float(rows), device=device, dtype=dtype)
        else:
            mask = real_tokens(mask.to(device))
            if mask.shape != (rows, positions):
                raise ValueError(
                    f"The attention mask has shape {tuple(mask.shape)}, but the activations have {rows} rows and "
                    f"{positions} positions: the mask must be (B, T) for activations (B, T, ...)."
                )
            pad = ~mask.unsqueeze(-1)
            first = (mask.long().argmax(0), torch.arange(positions, device=device))
            real = mask.sum(0, dtype=dtype).unsqueeze(-1)
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


class _HalfSquares(torch.autograd.Function):
    """Half the sum of squared deviations of each unit, whose gradient is the deviation.

    Of activations that are not wider than `held_dtype` the backward pass holds themselves, which the model often
    holds anyway, and their mean as a sum of two floats: one float32 cannot hold it closely enough to centre
    activations whose mean is a thousand times their deviation. Of wider ones it holds the deviations, in that type.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _Plan, moments: Moments, held_dtype: torch.dtype | None) -> Tensor:
        ctx.plan, ctx.dtype = plan, x.dtype
        if held_dtype is not None and held_dtype.itemsize < x.dtype.itemsize:
            ctx.save_for_backward(_deviations(x, plan, moments.mean, moments.mean_rest, held_dtype))
        else:
            ctx.save_for_backward(x, moments.mean, moments.mean_rest)
        return moments.squares / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        if len(ctx.saved_tensors) == 1:
            (deviations,) = ctx.saved_tensors
            positions = slice(None) if ctx.plan.pool_positions else slice(deviations.shape[1])
            return (deviations * grad_output[positions]).to(ctx.dtype), None, None, None
        x, mean, mean_rest = ctx.saved_tensors
        return _deviations(x, ctx.plan, mean, mean_rest, ctx.dtype, scale=grad_output), None, None, None


def _deviations(
    x: Tensor, plan: _Plan, mean: Tensor, mean_rest: Tensor, dtype: torch.dtype, scale: Tensor | None = None
) -> Tensor:
    """Deviations from the mean, 0 at padding, times a factor for each unit; computed as precisely as the mean is."""
    result: Tensor = torch.empty_like(x, dtype=dtype)
    shift = -mean_rest if scale is None else -mean_rest * scale
    for block, pad in plan.blocks(x):
        unit = slice(None) if plan.pool_positions else block
        in_place = result[:, block] if dtype == mean.dtype else None
        part = torch.sub(x[:, block], mean[unit], out=in_place)
        if scale is None:
            part.add_(shift[unit])
        else:
            torch.addcmul(shift[unit], part, scale[unit], out=part)
        if pad is not None:
            part.masked_fill_(pad, 0)
        if in_place is None:
            result[:, block] = part
    return result


def _moments(x: Tensor, plan: _Plan) -> Moments:
    """Moments of each unit; `x` is read once from main memory.

    Deviations are first taken from one real row of each position, which is as near the mean as the data are wide.
    """
    dtype = plan.rows.dtype
    pivot = x[0].to(dtype) if plan.first is None else x[plan.first].to(dtype).masked_fill_(plan.rows == 0, 0)
    sums, squares = torch.empty_like(pivot), torch.empty_like(pivot)
    for block, pad in plan.blocks(x):
        part = x[:, block] - pivot[block]  # in the wider of their types
        if pad is not None:
            part.masked_fill_(pad, 0)
        torch.sum(part, 0, out=sums[block])
        torch.sum(part.square_(), 0, out=squares[block])
    rest = sums / plan.rows.clamp(min=1)
    squares.addcmul_(sums, rest, value=-1).clamp_(min=0)
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
