"""Statistics of the activations of a layer: batch entropy, and measures that do not depend on the scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .entropy import unit_entropies
from .moments import Moments, Plan, Samples, as_units, moments_of

MAX_GRAM_SAMPLES = 512
"""Maximum number of samples for the effective rank; larger batches are subsampled evenly."""

LARGEST = 1e16
"""Value above which a number counts as infinite: sums of its squares overflow in float32."""

DEAD_SHARE = 1e-12
"""Variance share up to which a unit counts as constant. Float32 rounding, 6e-8 of a value, gives 4e-15."""


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one layer over the samples of a batch, or averaged over batches.

    A statistic is NaN if it could not be measured because of non-finite values or fewer than two samples.
    """

    name: str
    batch_entropy: float
    """In nats, as defined by `lbe_hf.batch_entropy`. Depends on the scale of the activations."""
    variance_share: float
    """`sum var / sum (var + mean^2)` over the units, 0 to 1: the fraction of the second moment that is variance
    over the samples. One minus it is approximately the mean cosine similarity of two samples."""
    effective_rank: float
    """`tr(G)^2 / tr(G^2)` of the Gram matrix G of the centred samples, from 1 to the number of samples minus one: the
    number of directions in which the samples differ. 0 if they do not differ."""
    dead_units: float
    """Fraction of the features (channels of convolutions) that have no variance over the batch at any position."""
    nonfinite: float
    """Fraction of the values that are NaN, infinite or above `LARGEST`."""
    max_rank: float
    """Upper bound of the effective rank: the number of units, or the number of samples minus one if it is smaller."""

    @staticmethod
    def unmeasured(name: str, nonfinite: float = 0.0) -> LayerStatistics:
        """Statistics of a layer with non-finite values, or with fewer than two samples."""
        return LayerStatistics(name, math.nan, math.nan, math.nan, math.nan, nonfinite, max_rank=0)

    @staticmethod
    def over(parts: Sequence[LayerStatistics]) -> LayerStatistics:
        """Combine several batches of one layer: minimum of `dead_units`, maximum of `nonfinite`, otherwise means."""

        def mean(statistic: str) -> float:
            values = [value for part in parts if not math.isnan(value := getattr(part, statistic))]
            return sum(values) / len(values) if values else math.nan

        means = {field.name: mean(field.name) for field in fields(LayerStatistics) if field.name != "name"}
        dead = min((part.dead_units for part in parts if not math.isnan(part.dead_units)), default=math.nan)
        nonfinite = max(part.nonfinite for part in parts)
        return LayerStatistics(parts[0].name, **{**means, "dead_units": dead, "nonfinite": nonfinite})


def for_json(value: Any) -> Any:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@torch.no_grad()
def layer_statistics(
    name: str, x: Tensor, attention_mask: Tensor | None = None, samples: Samples = "sequence"
) -> LayerStatistics:
    """Statistics of the activations of one layer. Synchronizes with the device.

    The effective rank takes `n^2` multiplications per feature and position, for n samples, at most 512.

    Args:
        name: name of the layer.
        x: activations, shape `(B, ...)`; for hidden states `(B, T, D)`.
        attention_mask: as for `lbe_hf.batch_entropy`.
        samples: as for `lbe_hf.batch_entropy`.

    Raises:
        ValueError: as for `lbe_hf.batch_entropy`, except for too few samples.
    """
    with torch.autocast(x.device.type, enabled=False):
        units = as_units(x, samples)
        plan = Plan.of(units, attention_mask, samples)
        nonfinite = _nonfinite(units, plan)
        if nonfinite > 0 or not bool(plan.measured):
            return LayerStatistics.unmeasured(name, nonfinite)
        moments, variance, second = _moments(units, plan)
        entropy = (plan.weight * unit_entropies(variance).mean(-1, keepdim=True)).sum()
        whole = (plan.weight * second).sum()
        share = (plan.weight * variance).sum() / torch.where(whole > 0, whole, 1)
        dead = _dead(variance, second, plan, x.dim(), samples)
        rank, count = _effective_rank(units, plan, moments)
        max_rank = min(count - 1, variance.numel())
        measured = [entropy, share, torch.where(share > DEAD_SHARE, rank, 0), dead]
        values: list[float] = torch.stack(measured).tolist()
        return LayerStatistics(name, values[0], values[1], values[2], values[3], nonfinite, max_rank)


@torch.no_grad()
def dead_and_nonfinite(x: Tensor, attention_mask: Tensor | None = None) -> tuple[float, float]:
    """`dead_units` and `nonfinite` of `LayerStatistics`; `dead_units` is NaN if `nonfinite` is not 0."""
    with torch.autocast(x.device.type, enabled=False):
        units = as_units(x, "sequence")
        plan = Plan.of(units, attention_mask, "sequence")
        nonfinite = _nonfinite(units, plan)
        if nonfinite > 0 or not bool(plan.measured):
            return math.nan, nonfinite
        _, variance, second = _moments(units, plan)
        return _dead(variance, second, plan, x.dim(), "sequence").item(), nonfinite


def _moments(units: Tensor, plan: Plan) -> tuple[Moments, Tensor, Tensor]:
    """Moments of the units, their variances, and their second moments."""
    moments = moments_of(units, plan)
    variance = moments.squares / (plan.count - 1).clamp(min=1)
    return moments, variance, variance + (moments.mean + moments.mean_rest).square()


def _nonfinite(units: Tensor, plan: Plan) -> float:
    right = units.isfinite()
    if torch.finfo(units.dtype).max > LARGEST:
        right &= units.abs() <= LARGEST
    wrong = ~right
    if plan.pad is None:
        return float(wrong.sum()) / max(1, wrong.numel())
    real = ~plan.pad
    return float((wrong & real).sum()) / max(1, int(real.sum()) * units.shape[-1])


def _dead(variance: Tensor, second: Tensor, plan: Plan, dimensions: int, samples: Samples) -> Tensor:
    """Fraction of dead features: the last dimension of `(B, T, D)`, the second one of `(B, D)` and `(B, C, H, W)`."""
    alive = (variance > DEAD_SHARE * second) & (plan.count >= 2)
    over = 0 if dimensions == 3 or samples == "token" else 1
    return 1 - alive.any(over).to(variance.dtype).mean()


def _effective_rank(units: Tensor, plan: Plan, moments: Moments) -> tuple[Tensor, int]:
    """Effective rank, and the number of samples it was computed from."""
    # Scaled so that fourth powers neither overflow nor underflow.
    scale = moments.squares.mean().sqrt().clamp(min=torch.finfo(moments.squares.dtype).tiny)
    if plan.pool_positions:
        flat = units.flatten(0, 1)
        tokens = flat if plan.pad is None else flat[~plan.pad.flatten()]
        tokens = tokens[_evenly_spaced(len(tokens), tokens.device)]
        centred = ((tokens - moments.mean) - moments.mean_rest) / scale
        gram = centred @ centred.T
    else:
        chosen = _evenly_spaced(len(units), units.device)
        gram = torch.zeros(len(chosen), len(chosen), dtype=moments.mean.dtype, device=units.device)
        for block, pad in plan.blocks(units):
            centred = ((units[chosen, block] - moments.mean[block]) - moments.mean_rest[block]) / scale
            if pad is not None:
                centred.masked_fill_(pad[chosen], 0)
            flat = centred.flatten(1)
            gram.addmm_(flat, flat.T)
    return gram.trace().square() / gram.square().sum().clamp(min=torch.finfo(gram.dtype).tiny), len(gram)


def _evenly_spaced(count: int, device: torch.device) -> Tensor:
    chosen = min(count, MAX_GRAM_SAMPLES)
    return torch.arange(chosen, device=device) * count // max(1, chosen)
