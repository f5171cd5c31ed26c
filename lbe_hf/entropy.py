"""Batch entropy of layer activations (Peer et al., TMLR 2022, https://arxiv.org/abs/2208.01134).

The estimator follows the authors' released code: `H = mean over units of 1/2 * ln(1 + pi * e * var)`, in nats.
Attention masks and tokens as samples are extensions; without them the definition is that of the authors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .moments import Moments, Plan, Samples, as_units, check_samples, deviations, moments_of

_PI_E = math.pi * math.e


def batch_entropy(x: Tensor, attention_mask: Tensor | None = None, samples: Samples = "sequence") -> Tensor:
    """Batch entropy of one layer's activations.

    Args:
        x: activations, shape `(B, ...)`; for hidden states `(B, T, D)`.
        attention_mask: shape `(B, T)`, nonzero at real tokens, or another mask supported by `real_tokens`. The
            variance at a position then runs over the examples with a real token there. Positions with fewer than two
            of them are excluded, and the others are weighted by their number of examples, so that the entropy does
            not depend on the amount of padding.
        samples: `"sequence"` (default): the B examples are the samples, and every entry of an example is a unit.
            `"token"`: the real tokens (the first two dimensions) are the samples, and the features are the units;
            a `(B, D)` tensor has one token per example.

    Returns:
        Entropy in nats, shape `()`, never negative; float32, or float64 for a float64 `x`, where value and gradient
        are accurate to 1e-12. It can be differentiated once.

    Raises:
        ValueError: no unit has two samples, `x` has no features, the mask does not fit `x`, or `samples` is unknown.

    >>> x = torch.tensor([[0.0], [2.0]])  # one unit, unbiased variance 2
    >>> round(batch_entropy(x).item(), 4)
    1.4474
    """
    return batch_entropies([x], attention_mask, samples)[0]


def batch_entropies(
    activations: Sequence[Tensor], attention_mask: Tensor | None = None, samples: Samples = "sequence"
) -> Tensor:
    """Batch entropies of several layers on the same batch, shape `(L,)`; otherwise as `batch_entropy`.

    On an accelerator with an attention mask, this synchronizes once to check that some unit has two samples.
    """
    entropies, measured = measure_entropies(activations, [attention_mask] * len(activations), samples)
    if not bool(measured.all()):
        raise ValueError(
            "Batch entropy needs at least two samples for some unit: pass a batch of two or more examples, "
            "or use samples='token' to treat tokens as samples."
        )
    return entropies


Merge = Callable[[list[Moments], Samples], Iterable[Moments]]
"""Merges the moments of each layer with those of further samples; may append units."""


def measure_entropies(
    activations: Iterable[Tensor],
    attention_masks: Sequence[Tensor | None],
    samples: Samples = "sequence",
    *,
    merge: Merge | None = None,
    held_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Batch entropies with one mask per layer, without synchronizing with the device.

    Args:
        activations: one tensor per layer. Each is released before the next one is requested, unless the backward
            pass needs it or `merge` is given.
        attention_masks: one per layer, as for `batch_entropy`.
        merge: adds samples that are not in `activations`.
        held_dtype: floating point type in which the backward pass stores wider activations, as deviations from their
            mean. The gradient is rounded to it, and the activations themselves are not stored. Default: store the
            activations.

    Returns:
        `(entropies, measured)`, both of shape `(L,)`. If no unit of a layer has two samples, its `measured` is False,
        and its entropy and gradient are 0.
    """
    if not attention_masks:
        raise ValueError("Batch entropy needs the activations of at least one layer.")
    check_samples(samples)
    plans: dict[Any, Plan] = {}

    def layers() -> Iterator[_Layer]:
        for x, mask in zip(activations, attention_masks, strict=True):
            units = as_units(x, samples)
            # Layers of one model nearly always share the mask, so one plan serves them all.
            key = (id(mask), *units.shape[:2], units.device, torch.promote_types(units.dtype, torch.float32))
            if key not in plans:
                plans[key] = Plan.of(units, mask, samples)
            yield _Layer(x, units, plans[key], moments_of(units.detach(), plans[key]))

    alike: dict[Any, tuple[Plan, list[tuple[int, Tensor]]]] = {}  # layers with the same weights and shape
    for index, layer in enumerate(layers() if merge is None else _merged(layers(), merge, samples)):
        half: Tensor = _HalfSquares.apply(layer.units, layer.plan, layer.moments, held_dtype)  # type: ignore[no-untyped-call]
        _run_backward_beside(half, layer.x)
        alike.setdefault((id(layer.plan), half.shape), (layer.plan, []))[1].append((index, half))
    results: dict[int, tuple[Tensor, Tensor]] = {}
    for plan, group in alike.values():
        variance = torch.stack([half for _, half in group]) / ((plan.count - 1).clamp(min=1) / 2)
        means = (plan.weight * unit_entropies(variance).mean(-1, keepdim=True)).sum((1, 2))
        results |= {index: (mean, plan.measured) for (index, _), mean in zip(group, means, strict=True)}
    device = results[0][0].device
    entropies, measured = zip(*(results[index] for index in range(len(results))), strict=True)
    return torch.stack([h.to(device) for h in entropies]), torch.stack([m.to(device) for m in measured])


def unit_entropies(variance: Tensor) -> Tensor:
    """Entropy of each unit in nats, from its variance over the samples; same shape."""
    return 0.5 * torch.log1p(_PI_E * variance)


class _Layer(NamedTuple):
    x: Tensor
    units: Tensor  # (examples, positions, features)
    plan: Plan
    moments: Moments


def _merged(layers: Iterable[_Layer], merge: Merge, samples: Samples) -> Iterator[_Layer]:
    """The layers with their merged moments, and plans for the merged number of samples."""
    own = list(layers)
    for layer, moments in zip(own, merge([layer.moments for layer in own], samples), strict=True):
        # Layers of the same length here may have different lengths elsewhere, so each has its own plan.
        yield layer._replace(plan=layer.plan.with_samples(moments.count), moments=moments)


class _HalfSquares(torch.autograd.Function):
    """Half the sum of squared deviations of each unit, whose gradient is the deviation.

    For activations not wider than `held_dtype`, the backward pass stores the activations, which the model often
    stores anyway, and their mean as a sum of two floats: one float32 is not precise enough to centre activations whose
    mean is a thousand times their deviation. For wider activations it stores the deviations in `held_dtype`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, moments: Moments, held_dtype: torch.dtype | None) -> Tensor:
        ctx.plan, ctx.dtype = plan, x.dtype
        if held_dtype is not None and held_dtype.itemsize < x.dtype.itemsize:
            ctx.save_for_backward(deviations(x, plan, moments.mean, moments.mean_rest, held_dtype))
        else:
            ctx.save_for_backward(x, moments.mean, moments.mean_rest)
        return moments.squares / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        if len(ctx.saved_tensors) == 1:
            (held,) = ctx.saved_tensors
            positions = slice(None) if ctx.plan.pool_positions else slice(held.shape[1])
            return (held * grad_output[positions]).to(ctx.dtype), None, None, None
        x, mean, mean_rest = ctx.saved_tensors
        return deviations(x, ctx.plan, mean, mean_rest, ctx.dtype, scale=grad_output), None, None, None


def _run_backward_beside(entropy: Tensor, x: Tensor) -> None:
    """Schedule the backward of `entropy` together with the backward of the layer that computed `x`.

    Autograd runs the most recent nodes first. The entropies are computed after the whole forward pass, so the
    gradients of all layers would be kept in memory from the start of backward. This is only a scheduling hint; it
    relies on a private attribute of PyTorch and is skipped where that is missing.
    """
    if entropy.grad_fn is None or x.grad_fn is None or torch.compiler.is_compiling():
        return
    node, producer = entropy.grad_fn, x.grad_fn
    if hasattr(node, "_set_sequence_nr") and hasattr(producer, "_sequence_nr"):
        node._set_sequence_nr(producer._sequence_nr())
