"""Mean and variance of the units of a layer over the samples of a batch, padding left out.

A unit is one entry of `x[0]`, with `samples="sequence"`, or one feature, with `samples="token"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Samples = Literal["sequence", "token"]

# Elements of one block of work. On a CPU a block stays in cache while it is read three times; an accelerator wants few
# kernels, and a bound on what they allocate.
_CPU_BLOCK = 2**18
_ACCELERATOR_BLOCK = 2**23


@dataclass(frozen=True)
class Moments:
    """Moments of one layer's units over their samples. The mean is the sum of two floats: see `_HalfSquares`."""

    count: Tensor  # (units, 1), samples of each unit
    mean: Tensor  # (units, features)
    mean_rest: Tensor  # (units, features)
    squares: Tensor  # (units, features), summed squared deviations from the mean


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


def as_units(x: Tensor, samples: Samples) -> Tensor:
    """`x` as `(rows, positions, features)`, a view where its memory layout allows one."""
    if not x.is_floating_point():
        raise ValueError(f"Batch entropy needs floating point activations, not {x.dtype}.")
    if x.dim() < 2 or 0 in x.shape[2:] or (x.dim() == 2 and x.shape[1] == 0):
        raise ValueError(f"Batch entropy needs activations of shape (B, ...) with features, not {tuple(x.shape)}.")
    if x.dim() == 2:
        return x.unsqueeze(1 if samples == "token" else 2)
    return x.flatten(2)


@dataclass(frozen=True)
class Plan:
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
    ) -> Plan:
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
        return Plan(pad, first, real, count, *_weigh(count), pool)

    def with_samples(self, count: Tensor) -> Plan:
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


def deviations(
    x: Tensor, plan: Plan, mean: Tensor, mean_rest: Tensor, dtype: torch.dtype, scale: Tensor | None = None
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


def moments_of(x: Tensor, plan: Plan) -> Moments:
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
