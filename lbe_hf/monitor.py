"""Losses and entropies of a regularized run between two log lines, and over the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


def by_layer(line: Mapping[str, Any], quantity: str) -> list[float]:
    """Values of each layer in a log line, first to last; empty if there are none. `quantity`: "entropy" or "target".

    By number: a resumed run has its log sorted by name, where layer 100 comes before layer 11.
    """
    names = [name for name in line if name.startswith(f"{quantity}/layer_")]
    return [line[name] for name in sorted(names, key=lambda name: int(name.rpartition("_")[2]))]


class Measurement(NamedTuple):
    """What `compute_loss` measured in one micro-batch."""

    penalty: Tensor  # (), as it was added to the loss or multiplied with it; 0 where it was left out
    entropies: Tensor  # (L,), in nats
    measured: Tensor  # (), whether the entropies could be measured
    reversing: Tensor  # (), whether the penalty was left out because the task loss is not positive


class Means(NamedTuple):
    """Means over optimizer steps."""

    task_loss: float
    lbe_loss: float
    unmeasured: float
    """Share of the micro-batches whose entropies could not be measured."""
    reversing: float
    """Share of the micro-batches whose task loss was not positive in the product form."""
    entropies: list[float]
    """Batch entropy of each layer, in nats; empty if nothing was measured."""


class EntropyMonitor:
    """Sums of losses and entropies, kept on the device so that a training step never waits for them."""

    def __init__(self) -> None:
        self.last: Means | None = None
        """Means as `since_last` gave them last."""
        self._step: Tensor | None = None  # of the optimizer step that is being made
        self._line: Tensor | None = None  # since the last log line
        self._run: Tensor | None = None
        self._line_steps = self._run_steps = 0

    def add(self, loss: Tensor, lbe_loss: Tensor, measurement: Measurement) -> None:
        """Count one micro-batch; if nothing was measured in it, only its loss counts.

        Args:
            loss: regularized loss as it goes into the gradient, shape `()`: already divided by what gradient
                accumulation divides it by.
            lbe_loss: part of it that is not the task loss, shape `()`.
        """
        measured = measurement.measured.to(loss.dtype)
        reversing = measurement.reversing.to(loss.dtype)
        heads = torch.stack([loss - lbe_loss, lbe_loss, measured, reversing, torch.ones_like(loss)])
        sums = torch.cat([heads.float(), measurement.entropies.float() * measurement.measured])
        self._step = sums if self._step is None else self._step + sums

    @property
    def step(self) -> Tensor | None:
        """Sums of this process over the optimizer step that is being made; None before its first micro-batch."""
        return self._step

    def end_step(self, sums: Tensor) -> None:
        """Count one optimizer step, by the mean of `step` over all processes."""
        self._step = None
        self._line = sums if self._line is None else self._line + sums
        self._run = sums if self._run is None else self._run + sums
        self._line_steps += 1
        self._run_steps += 1

    def since_last(self) -> Means | None:
        """Means since the last call, read from the device at once; None if there was no step."""
        means = _means(self._line, self._line_steps)
        self._line, self._line_steps = None, 0
        self.last = means or self.last
        return means

    @property
    def has_steps(self) -> bool:
        """Whether an optimizer step was counted."""
        return self._run is not None

    def over_run(self) -> Means | None:
        """Means over all steps; None if there was none."""
        return _means(self._run, self._run_steps)


def _means(sums: Tensor | None, steps: int) -> Means | None:
    if sums is None:
        return None
    task_loss, lbe_loss, measured, reversing, batches, *entropies = sums.tolist()
    return Means(
        task_loss / steps,
        lbe_loss / steps,
        unmeasured=1 - measured / batches,
        reversing=reversing / batches,
        entropies=[entropy / measured for entropy in entropies] if measured else [],
    )
