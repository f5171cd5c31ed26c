"""Information flow through the layers of a model on real data, and the verdict."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import logging

from .activations import Activation, ActivationSource, misfits_in_words, not_by_example_in_words
from .batch_inputs import BatchInputs
from .hidden_states import HiddenStates, models_with_hidden_states
from .layer_statistics import LayerStatistics, for_json, layer_statistics
from .leaf_modules import LeafModules, ModuleStatistics, adapter_modules, leaf_modules
from .models import base_model
from .moments import Samples, check_samples
from .target_modules import TargetModules
from .verdict import Finding, judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.get_logger(__name__)

HEALTHY = "Healthy: every layer lets the signal through."

_COLUMNS = {
    "batch_entropy": ("entropy (nats)", ".4f"),
    "variance_share": ("variance share", ".2g"),
    "effective_rank": ("effective rank", ".2f"),
    "dead_units": ("dead units", ".0%"),
    "nonfinite": ("NaN or infinite", ".0%"),
}


@dataclass(frozen=True)
class InformationFlow:
    """Statistics of each layer from the input to the output, and the findings derived from them."""

    layers: list[LayerStatistics]
    modules: list[ModuleStatistics]
    """The innermost modules. Residual connections can hide a constant or NaN output of theirs from hidden states."""
    findings: list[Finding]
    """Ordered so that possible causes come first; empty for a healthy model."""

    @property
    def names(self) -> list[str]:
        """Names of the layers."""
        return [layer.name for layer in self.layers]

    @property
    def entropies(self) -> list[float]:
        """Batch entropy of each layer, in nats."""
        return [layer.batch_entropy for layer in self.layers]

    @property
    def is_healthy(self) -> bool:
        """Whether no finding is a fault. Redundant last layers are a finding, but not a fault."""
        return not any(finding.is_fault for finding in self.findings)

    @cached_property
    def verdict(self) -> list[str]:
        """One line for each finding; a healthy model has a line that states it."""
        return [*([HEALTHY] if self.is_healthy else []), *map(str, self.findings)]

    def table(self) -> list[list[str]]:
        """A header row, then one row of text for each layer."""
        head = ["layer", *(title for title, _ in _COLUMNS.values())]
        rows = [
            [layer.name, *(_cell(getattr(layer, name), spec) for name, (_, spec) in _COLUMNS.items())]
            for layer in self.layers
        ]
        return [head, *rows]

    def __str__(self) -> str:
        table = self.table()
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([*(line.rstrip() for line in lines), "", *self.verdict])

    def _repr_html_(self) -> str:
        from .flow_page import fragment

        return fragment(self.verdict, self.table())

    def to_dict(self) -> dict[str, Any]:
        """Lists, strings and numbers; a statistic that could not be measured is None."""
        return {
            "healthy": self.is_healthy,
            "findings": [{**asdict(finding), "fault": finding.is_fault} for finding in self.findings],
            "layers": [_for_json(layer) for layer in self.layers],
            "modules": [_for_json(module) for module in self.modules],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def to_html(self, title: str = "Information flow") -> str:
        """A self-contained page: the verdict, the table and, with the extra `plot`, the figure."""
        from .flow_page import can_draw, page

        return page(title, self.verdict, self.table(), self.plot() if can_draw() else None)

    def plot(self) -> Figure:
        """Batch entropy, variance share and effective rank by layer, with findings marked (needs the extra `plot`)."""
        from .figures import draw_flow

        return draw_flow(self.layers, self.findings)


def information_flow(
    model: nn.Module,
    dataloader: Iterable[Mapping[str, Any]],
    *,
    target_modules: str | Sequence[str] | None = None,
    num_batches: int = 4,
    samples: Samples = "sequence",
    ignore_padding: bool = True,
) -> InformationFlow:
    """Measure the information flow through the layers of any model on batches of data, without training.

    Dropout is disabled, because its noise would count as variance; batch normalization uses the statistics of the
    batch, as in training. The model (weights, buffers, mode, hooks) and the state of the random number generators are
    restored afterwards.

    Args:
        model: any module.
        dataloader: yields dictionaries with the arguments of `model`, for two or more examples each. They are moved to
            the device of the model.
        target_modules: modules whose outputs are the layers, as `lbe_target_modules` of `LBEArguments`: a regular
            expression, or a list of names or dotted suffixes. None (default): the hidden states, or all innermost
            modules of a model that has none.
        num_batches: maximum number of batches to average over (default 4).
        samples: what the variance runs over, as in `lbe_hf.batch_entropy` (default `"sequence"`, the examples).
        ignore_padding: exclude padding, using the attention mask (default True).

    Raises:
        ValueError: there is no batch, a batch is not a dictionary, no layer had two samples, `samples` is unknown, or
            `target_modules` does not match a module.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> _ = nn.init.zeros_(model[1].weight)  # the second layer ignores its input
        >>> flow = information_flow(model, [{"input": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}])
        >>> flow.is_healthy
        False
        >>> [f"{finding.kind}: layer {finding.layer}" for finding in flow.findings]
        ['collapsed: layer 1']
    """
    meter = FlowMeter(model, target_modules, samples, ignore_padding)
    with prepared(model), torch.no_grad():
        # accelerate holds offloaded parameters on `meta`, and moves the inputs of their modules itself.
        device = next((own.device for own in model.parameters() if not own.is_meta), torch.device("cpu"))
        for batch in islice(dataloader, num_batches):
            if not isinstance(batch, Mapping):
                raise ValueError(f"Batches must be dictionaries of the model's arguments, not {type(batch).__name__}.")
            meter.measure((), dict(send_to_device(batch, device)))
    return meter.flow()


class FlowMeter:
    """Measures single forward passes of a model; arguments as for `information_flow`."""

    def __init__(
        self,
        model: nn.Module,
        target_modules: str | Sequence[str] | None = None,
        samples: Samples = "sequence",
        ignore_padding: bool = True,
    ) -> None:
        check_samples(samples)
        self._model, self._samples, self._ignore_padding = model, samples, ignore_padding
        self._source: ActivationSource
        if target_modules is not None:
            self._source = TargetModules(model, target_modules)
        elif models_with_hidden_states(model):
            self._source = HiddenStates(model, every_layer=False)
        else:
            self._source = self._innermost()
        self._layers: dict[str, list[LayerStatistics]] = {}
        self._modules = LeafModules(model)
        self._inputs: list[BatchInputs] = []
        self._misfits: dict[str, None] = {}
        self._not_by_example: dict[str, None] = {}

    def _innermost(self) -> TargetModules:
        model = base_model(self._model)
        adapters = adapter_modules(model)
        names = [name for name, module in leaf_modules(model).items() if module not in adapters]
        return TargetModules(self._model, "|".join(map(re.escape, names)))

    def measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run and measure one forward pass with these arguments."""
        inputs = BatchInputs.of(args, kwargs)
        self._inputs.append(inputs)
        mask = inputs.mask if self._ignore_padding else None
        try:
            self._pass(args, kwargs, inputs.size, mask)
        except (TypeError, ValueError):
            # Models of Transformers that take any argument need not have hidden states.
            if len(self._inputs) > 1 or not isinstance(self._source, HiddenStates):
                raise
            self._source = self._innermost()
            self._layers.clear()
            self._pass(args, kwargs, inputs.size, mask)

    def _pass(self, args: tuple[Any, ...], kwargs: dict[str, Any], size: int, mask: Tensor | None) -> None:
        with self._source.listen(with_gradient=False, sink=self._take), self._modules.listen(size, mask):
            self._model(*args, **kwargs)

    def _take(self, activation: Activation) -> None:
        if activation.value.dim() < 2:
            return
        mask = activation.fitting_mask if self._ignore_padding else None
        if self._ignore_padding and activation.is_misfit:
            self._misfits[activation.name] = None
        if self._samples == "sequence" and activation.is_not_by_example:
            self._not_by_example[activation.name] = None
        statistics = layer_statistics(activation.name, activation.value, mask, self._samples)
        self._layers.setdefault(activation.name, []).append(statistics)

    def flow(self) -> InformationFlow:
        """Statistics and findings over all passes so far.

        Raises:
            ValueError: there was no pass, or no layer had two samples.
        """
        if not self._inputs:
            raise ValueError("The data loader is empty: there is no batch to measure.")
        layers = [LayerStatistics.over(parts) for parts in self._layers.values()]
        modules = list(self._modules.statistics.values())
        findings = judge(layers, modules, self._inputs)
        if not findings and not any(layer.max_rank for layer in layers):
            raise ValueError(
                "No batch had two samples for any layer: use batches of two or more examples, or samples='token'."
            )
        if self._misfits:
            logger.warning(misfits_in_words(self._misfits))
        if self._not_by_example:
            logger.warning(not_by_example_in_words(self._not_by_example))
        return InformationFlow(layers, modules, findings)


@contextmanager
def prepared(model: nn.Module) -> Iterator[None]:
    """Prepare the model for measuring; on exit restore it and the random number generators.

    Inside, compiled modules run eagerly, because they skip hooks, and PyTorch's own transformer layers do not pack the
    batch into a nested tensor, which has no variance.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modes
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(devices), _not_compiled():
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for module in modes:  # not by `eval`, in which an adapter may merge its weights
                module.training = isinstance(module, _BatchNorm)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, training in modes.items():
                module.training = training
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    setattr(module, name, buffer.copy_(value))
            random.setstate(python)
            np.random.set_state(numpy)


def _not_compiled() -> AbstractContextManager[Any]:
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _cell(value: float, spec: str) -> str:
    return "-" if math.isnan(value) else format(value, spec)


def _for_json(statistics: LayerStatistics | ModuleStatistics) -> dict[str, Any]:
    return {name: for_json(value) for name, value in asdict(statistics).items()}
