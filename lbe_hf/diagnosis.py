"""How much of real data each layer of a model lets through, before any training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .activations import ActivationSource, measure_activations
from .entropy import SILENT_ENTROPY, Samples
from .hidden_states import HiddenStates
from .target_modules import TargetModules


@dataclass(frozen=True)
class InformationFlow:
    """Batch entropy of each layer, from the input to the output."""

    names: list[str]
    entropies: list[float]
    """In nats, as `lbe_hf.batch_entropy` defines it."""

    @property
    def silent(self) -> list[str]:
        """Names of the layers that let nothing through: their batch entropy is below 0.001 nats."""
        return [name for name, entropy in zip(self.names, self.entropies, strict=True) if entropy < SILENT_ENTROPY]

    def __str__(self) -> str:
        width = max(len(name) for name in ("layer", *self.names))
        lines = [f"{'layer':<{width}}  batch entropy (nats)"]
        lines += [f"{name:<{width}}  {entropy:.4f}" for name, entropy in zip(self.names, self.entropies, strict=True)]
        verdict = (
            f"These layers let nothing through: {', '.join(self.silent)}."
            if self.silent
            else "Every layer lets something through."
        )
        return "\n".join([*lines, verdict])


def information_flow(
    model: nn.Module,
    dataloader: Iterable[Mapping[str, Any]],
    *,
    target_modules: str | Sequence[str] | None = None,
    num_batches: int = 4,
    samples: Samples = "sequence",
    ignore_padding: bool = True,
) -> InformationFlow:
    """Batch entropy of each layer of any model on the first batches of a data loader, without training.

    Dropout is off, so that its noise is not taken for information, and batch normalization uses the statistics of the
    batch, as in training. The model (weights, buffers, mode, hooks) and the state of the random number generators are
    left as found.

    Args:
        model: a Transformers model, or with `target_modules` any module.
        dataloader: batches of two or more rows, dictionaries of the arguments of `model`; moved to its device.
        target_modules: modules whose outputs are measured, as `lbe_target_modules` of `LBEArguments`: a regular
            expression, or a list of names or dotted suffixes. None (default): the hidden states.
        num_batches: how many batches are averaged, at most (default 4).
        samples: what the variance runs over, as in `lbe_hf.batch_entropy` (default `"sequence"`, the rows).
        ignore_padding: leave padding out, by the attention mask (default True).

    Raises:
        ValueError: there is no batch, a batch is no dictionary, a layer never had two samples, or the layers cannot be
            found as `target_modules` says.
    """
    source: ActivationSource = HiddenStates(model) if target_modules is None else TargetModules(model, target_modules)
    names: list[str] = []
    totals: list[tuple[Tensor, Tensor]] = []
    with _as_found(model), torch.no_grad():
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        for batch in islice(dataloader, num_batches):
            if not isinstance(batch, Mapping):
                raise ValueError(f"Batches must be dictionaries of the model's arguments, not {type(batch).__name__}.")
            inputs = send_to_device(batch, device)
            with source.listen(with_gradient=False) as recording:
                model(**inputs)
            layers, *measured = measure_activations(recording.take(None), samples, ignore_padding)
            if names and names != layers:
                raise ValueError(f"One batch gave {len(names)} activations and another one {len(layers)}.")
            names = layers
            totals.append((measured[0], measured[1]))
    if not totals:
        raise ValueError("The data loader gave no batch.")
    counts = torch.stack([valid for _, valid in totals]).sum(0)
    unmeasured = [name for name, count in zip(names, counts.tolist(), strict=True) if count == 0]
    if unmeasured:
        raise ValueError(
            f"No batch had two samples for {', '.join(unmeasured)}: "
            "use batches of two or more rows, or samples='token'."
        )
    return InformationFlow(names, (torch.stack([entropies for entropies, _ in totals]).sum(0) / counts).tolist())


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Set the model up for measuring; on the way out it and the random number generators are as they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            model.eval()
            for module in modes:
                if isinstance(module, _BatchNorm):
                    module.train()
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            random.setstate(python)
            np.random.set_state(numpy)
