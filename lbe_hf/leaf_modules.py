"""Modules that lose what they are given, which hidden states need not show: a residual connection goes around them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from .layer_statistics import dead_and_nonfinite

_NO_LAYERS = (nn.Embedding, nn.Dropout, nn.Identity, nn.Flatten, nn.modules.loss._Loss)


@dataclass(frozen=True)
class ModuleStatistics:
    """What a module makes of inputs that are finite and differ between the samples."""

    name: str
    dead_units: float = math.nan
    """Share of the features of its output without variance over the batch, at every position; the least of all calls.
    0 where as many features of its input have none, NaN if all of them never had any."""
    nonfinite: float = 0.0
    """Share of the values of its output that are NaN or infinite; the largest of all calls."""


@dataclass
class LeafModules:
    """The innermost modules of a model, checked by forward hooks that exist only while listening; nothing is held."""

    model: nn.Module
    statistics: dict[str, ModuleStatistics] = field(default_factory=dict)
    """Of the modules that could be measured, in the order of their first calls."""

    @contextmanager
    def listen(self, rows: int, mask: Tensor | None) -> Iterator[None]:
        """Check the modules that are called inside the context.

        Args:
            rows: examples of the batch, B; an output with another first dimension is left alone.
            mask: where tokens are real, `(B, T)`, used for outputs that it fits.
        """
        with ExitStack() as stack:
            for name, module in leaf_modules(self.model).items():
                stack.callback(module.register_forward_hook(partial(self._check, name, rows, mask)).remove)
            yield

    def _check(self, name: str, rows: int, mask: Tensor | None, module: nn.Module, args: Any, output: Any) -> None:
        given = next((value for value in args if _is_activation(value, rows)), None)
        if given is None or not _is_activation(output, rows):
            return
        dead, nonfinite = dead_and_nonfinite(output, fitting(mask, output))
        if dead > 0 or nonfinite > 0:  # what it was given says whether it is to blame, and is read only then
            dead_before, nonfinite_before = dead_and_nonfinite(given, fitting(mask, given))
            nonfinite = nonfinite if nonfinite_before == 0 else 0.0
            if dead <= dead_before:
                dead = math.nan if dead_before == 1 else 0.0
        before = self.statistics.get(name, ModuleStatistics(name))
        least = min((share for share in (dead, before.dead_units) if not math.isnan(share)), default=math.nan)
        self.statistics[name] = ModuleStatistics(name, least, max(nonfinite, before.nonfinite))


def leaf_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules without modules inside that compute something of activations, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and not isinstance(module, _NO_LAYERS) and next(module.children(), None) is None
    }


def fitting(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask, if it is one of the second dimension of `x`: a pooled `(B, D)` output has no positions to mask."""
    return mask if mask is not None and x.dim() > 2 and x.shape[:2] == mask.shape else None


def _is_activation(value: Any, rows: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() > 1
        and value.shape[0] == rows
        and 0 not in value.shape
    )
