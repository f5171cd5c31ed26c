"""Finds modules with constant or non-finite outputs, which residual connections can hide from hidden states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from .layer_statistics import dead_and_nonfinite
from .moments import fitting

_NO_LAYERS = (nn.Embedding, nn.Dropout, nn.Identity, nn.Flatten, nn.modules.loss._Loss)


@dataclass(frozen=True)
class ModuleStatistics:
    """Faults in the output of a module that are not already in its input."""

    name: str
    dead_units: float = math.nan
    """Fraction of the output features that have no variance over the batch at any position; the minimum over all
    calls. 0 if the fraction in the input is at least as large, NaN if all features of the input were constant."""
    nonfinite: float = 0.0
    """Fraction of the output values that are NaN or infinite, for finite inputs; the maximum over all calls."""


@dataclass
class LeafModules:
    """Checks the innermost modules of a model with temporary forward hooks. No activations are stored.

    Adapters of PEFT are checked for non-finite values only: the output of a new LoRA adapter is constant, namely zero.
    """

    model: nn.Module
    statistics: dict[str, ModuleStatistics] = field(default_factory=dict)
    """Statistics of the modules that could be measured, in the order of their first calls."""

    @contextmanager
    def listen(self, batch_size: int, mask: Tensor | None) -> Iterator[None]:
        """Check the modules called inside the context.

        Args:
            batch_size: number of examples B; outputs with another first dimension are skipped.
            mask: `(B, T)`, True at real tokens; used for outputs of matching shape.
        """
        adapters = adapter_modules(self.model)
        with ExitStack() as stack:
            for name, module in leaf_modules(self.model).items():
                check = partial(self._check, name, module in adapters, batch_size, mask)
                stack.callback(module.register_forward_hook(check).remove)
            yield

    def _check(
        self,
        name: str,
        is_adapter: bool,
        batch_size: int,
        mask: Tensor | None,
        module: nn.Module,
        args: Any,
        output: Any,
    ) -> None:
        given = next((value for value in args if _is_activation(value, batch_size)), None)
        if given is None or not _is_activation(output, batch_size):
            return
        dead, nonfinite = dead_and_nonfinite(output, fitting(mask, output))
        dead = math.nan if is_adapter else dead
        # A fault that is in the input already is not counted; only then is the input read.
        if dead > 0 or nonfinite > 0:
            dead_before, nonfinite_before = dead_and_nonfinite(given, fitting(mask, given))
            nonfinite = nonfinite if nonfinite_before == 0 else 0.0
            if dead <= dead_before:
                dead = math.nan if dead_before == 1 else 0.0
        before = self.statistics.get(name, ModuleStatistics(name))
        least = min((share for share in (dead, before.dead_units) if not math.isnan(share)), default=math.nan)
        self.statistics[name] = ModuleStatistics(name, least, max(nonfinite, before.nonfinite))


def leaf_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules without submodules that transform activations, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and not isinstance(module, _NO_LAYERS) and next(module.children(), None) is None
    }


def adapter_modules(model: nn.Module) -> set[nn.Module]:
    """The modules of PEFT's adapters, without the layers that they adapt and without copies that are trained whole."""
    tuned = [module for module in model.modules() if hasattr(module, "base_layer")]
    adapters = [getattr(layer, name, None) for layer in tuned for name in getattr(layer, "adapter_layer_names", ())]
    return {inner for module in adapters if isinstance(module, nn.Module) for inner in module.modules()}


def _is_activation(value: Any, batch_size: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() > 1
        and value.shape[0] == batch_size
        and 0 not in value.shape
    )
