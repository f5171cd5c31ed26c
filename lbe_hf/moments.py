"""Mean and variance of the units of a layer over the samples of a batch, excluding padding.

A unit is one entry of `x[0]` with `samples="sequence"`, and one feature with `samples="token"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Samples = Literal["sequence", "token"]

# Elements per block. On a CPU, a block stays in cache while it is read three times. On an accelerator, larger blocks
# need fewer kernels, and the limit bounds their memory.
_CPU_BLOCK = 2**18
_ACCELERATOR_BLOCK = 2**23


@dataclass(frozen=True)
class Moments:
    """Moments of the units of one layer. The mean is the sum of two floats: see `entropy._HalfSquares`."""

    count: Tensor  # (units, 1), samples of each unit
    mean: Tensor  # (units, features)
    mean_rest: Tensor  # (units, features)
    squares: Tensor  # (units, features), summed squared deviations from the mean


def real_tokens(attention_mask: Tensor) -> Tensor:
    """Boolean mask of the real tokens `(B, T)`, without synchronizing with the device.

    Args:
        attention_mask: `(B, T)`, nonzero at real tokens, or an additive mask for attention scores: 0 at real tokens
            and negative at padding (a floating point mask of zeros counts as additive). Also `(B, Q, T)` or
            `(B, heads, Q, T)` of either kind: a position that no query may attend to is padding.

    Raises:
        ValueError: the mask does not have 2, 3 or 4 dimensions.
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


def check_samples(samples: str) -> None:
    """Raise a ValueError unless `samples` is one of `Samples`."""
    if samples not in get_args(Samples):
        raise ValueError(f"samples must be one of {get_args(Samples)}, not {samples!r}.")


def fitting(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask if it matches the first two dimensions of `x`; a pooled `(B, D)` output has no positions to mask."""
    return mask if mask is not None and x.dim() > 2 and x.shape[:2] == mask.shape else None


def readable_mask(mask: Any, input_ids: Any) -> Tensor | None:
    """The real tokens of an attention mask; None if it is not a tensor with two to four dimensions.

    Args:
        input_ids: the tokens, or None. If they and the mask are `(B, choices, T)`, the result is `(B * choices, T)`,
            as models of multiple choice flatten both.
    """
    if not isinstance(mask, Tensor) or not 2 <= mask.dim() <= 4:
        return None
    return real_tokens(mask.flatten(0, 1) if has_choices(mask, input_ids) else mask)


def has_choices(mask: Any, input_ids: Any) -> bool:
    """Whether an attention mask and the tokens are `(B, choices, T)`: a mask `(B, Q, T)` has tokens `(B, T)`."""
    tensors = isinstance(mask, Tensor) and isinstance(input_ids, Tensor)
    return tensors and mask.dim() == 3 and mask.shape == input_ids.shape


def as_units(x: Tensor, samples: Samples) -> Tensor:
    """`x` as `(examples, positions, features)`, a view where its memory layout allows one."""
    if not x.is_floating_point():
        raise ValueError(f"Batch entropy needs floating point activations, not {x.dtype}.")
    if x.dim() < 2 or 0 in x.shape[2:] or (x.dim() == 2 and x.shape[1] == 0):
        raise ValueError(f"Batch entropy needs activations of shape (B, ...) with features, not {tuple(x.shape)}.")
    if x.dim() == 2:
        return x.unsqueeze(1 if samples == "token" else 2)
    return x.flatten(2)


@dataclass(frozen=True)
class Plan:
    """Which entries of activations `(examples, positions, features)` are samples of a unit, and the unit weights."""

    pad: Tensor | None  # (examples, positions, 1), True where there is no token
    first: tuple[Tensor, Tensor] | None  # index of one real example at each position; None: the first example
    examples: Tensor  # (positions, 1), number of examples with a real token at each position
    count: Tensor  # (positions, 1) or (1, 1), number of samples of each unit
    weight: Tensor  # shape of count, weight in the mean over units; sums to 1, or to 0 if no unit has two samples
    measured: Tensor  # (), whether any unit has two samples
    pool_positions: bool

    @staticmethod
    def of(units: Tensor, mask: Tensor | None, samples: Samples) -> Plan:
        """For units as from `as_units`; moments are computed in float32, or in float64 if they are float64."""
        examples, positions, _ = units.shape
        device, dtype = units.device, torch.promote_types(units.dtype, torch.float32)
        pool = samples == "token"
        if mask is None:
            pad = first = None
            real = torch.full((positions, 1), float(examples), device=device, dtype=dtype)
        else:
            mask = real_tokens(mask.to(device))
            if mask.shape != (examples, positions):
                raise ValueError(
                    f"The attention mask has shape {tuple(mask.shape)}, but the activations have {examples} "
                    f"examples and {positions} positions: the mask must be (B, T) for activations (B, T, ...)."
                )
            pad = ~mask.unsqueeze(-1)
            first = (mask.long().argmax(0), torch.arange(positions, device=device))
            real = mask.sum(0, dtype=dtype).unsqueeze(-1)
        count = real.sum(0, keepdim=True) if pool else real
        return Plan(pad, first, real, count, *_weigh(count), pool)

    def with_samples(self, count: Tensor) -> Plan:
        """A copy for units with these numbers of samples."""
        weight, measured = _weigh(count)
        return replace(self, count=count, weight=weight, measured=measured)

    def blocks(self, x: Tensor) -> Iterator[tuple[slice, Tensor | None]]:
        """Ranges of positions to process at once, each with its part of the padding mask."""
        on_cpu = x.device.type == "cpu"
        examples, positions, features = x.shape
        step = max(1, (_CPU_BLOCK if on_cpu else _ACCELERATOR_BLOCK) // max(1, examples * features))
        for start in range(0, positions, step):
            block = slice(start, min(start + step, positions))
            pad = None if self.pad is None else self.pad[:, block]
            # Masking doubles the cost of a block. Checking whether it is needed is free only on the host.
            if on_cpu and pad is not None and not bool(pad.any()):
                pad = None
            yield block, pad


def _weigh(count: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of each unit in the mean, and whether any unit has two samples."""
    usable = torch.where(count >= 2, count, 0.0)
    total = usable.sum()
    return usable / total.clamp(min=1), total > 0


def deviations(
    x: Tensor, plan: Plan, mean: Tensor, mean_rest: Tensor, dtype: torch.dtype, scale: Tensor | None = None
) -> Tensor:
    """Deviations from the mean times a factor per unit, 0 at padding; computed with the precision of the mean."""
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

    Deviations are first taken from one real example at each position, which avoids cancellation because its distance
    from the mean is of the size of the standard deviation.
    """
    dtype = plan.examples.dtype
    pivot = x[0].to(dtype) if plan.first is None else x[plan.first].to(dtype).masked_fill_(plan.examples == 0, 0)
    sums, squares = torch.empty_like(pivot), torch.empty_like(pivot)
    for block, pad in plan.blocks(x):
        part = x[:, block] - pivot[block]  # in the wider of the two types
        if pad is not None:
            part.masked_fill_(pad, 0)
        torch.sum(part, 0, out=sums[block])
        torch.sum(part.square_(), 0, out=squares[block])
    rest = sums / plan.examples.clamp(min=1)
    squares.addcmul_(sums, rest, value=-1).clamp_(min=0)
    if not plan.pool_positions:
        return Moments(plan.count, pivot, rest, squares)
    # The deviations of all tokens from their common mean are those within a position plus those between positions.
    # They are taken relative to a real token, so that the deviations of constant features are exactly zero.
    share = plan.examples / plan.count.clamp(min=1)
    pooled = pivot.index_select(0, (plan.examples > 0).long().argmax(0))
    between = (pivot - pooled) + rest
    pooled_rest = (share * between).sum(0, keepdim=True)
    squares = squares + plan.examples * (between - pooled_rest).square()
    return Moments(plan.count, pooled, pooled_rest, squares.sum(0, keepdim=True))
