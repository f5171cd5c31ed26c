"""Means of losses and entropies between two log lines, and over a whole run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Measurement(NamedTuple):
    """Measurement of one micro-batch in `compute_loss`."""

    penalty: Tensor  # (), as used in the loss; 0 if it was not applied
    entropies: Tensor  # (L,), in nats
    measured: Tensor  # (), whether the entropies could be measured
    skipped: Tensor  # (), whether it was not applied because of the task loss: see `regularizer.add_penalty`


class Means(NamedTuple):
    """Means over optimizer steps."""

    task_loss: float
    lbe_loss: float
    unmeasured: float
    """Fraction of the micro-batches whose entropies could not be measured."""
    skipped: float
    """Fraction of the micro-batches whose task loss was not positive, or not finite, in the product form."""
    entropies: list[float]
    """Batch entropy of each layer, in nats; empty if nothing was measured."""


class EntropyMonitor:
    """Sums of losses and entropies, kept on the device so that training steps do not synchronize.

    Args:
        filters: whether the losses of a micro-batch whose loss is not finite are replaced as `Trainer` replaces its
            loss, by the means since the last log line (`logging_nan_inf_filter`).
    """

    def __init__(self, filters: bool = False) -> None:
        self._filters = filters
        self.last: Means | None = None
        """Most recent means returned by `since_last`."""
        self.step: Tensor | None = None
        """Sums of this process over the current optimizer step; None before its first micro-batch."""
        self._line: Tensor | None = None  # since the last log line
        self._run: Tensor | None = None
        self._line_steps = self._run_steps = 0

    def add(self, loss: Tensor, lbe_loss: Tensor, measurement: Measurement) -> None:
        """Add one micro-batch; if it could not be measured, only its loss is added.

        Args:
            loss: regularized loss of shape `()`, already divided for gradient accumulation.
            lbe_loss: its part that is not the task loss, shape `()`.
        """
        measured = measurement.measured.to(loss.dtype)
        skipped = measurement.skipped.to(loss.dtype)
        heads = torch.stack([loss - lbe_loss, lbe_loss, measured, skipped, torch.ones_like(loss)]).float()
        if self._filters:
            heads = torch.cat([torch.where(loss.isfinite(), heads[:2], self._losses()), heads[2:]])
        sums = torch.cat([heads, measurement.entropies.float() * measurement.measured])
        self.step = sums if self.step is None else self.step + sums

    def _losses(self) -> Tensor | float:
        """Task loss and penalty `(2,)` of a step, on average since the last log line."""
        sums = [own[:2] for own in (self._line, self.step) if own is not None]
        return torch.stack(sums).sum(0) / (1 + self._line_steps) if sums else 0.0

    def end_step(self, sums: Tensor) -> None:
        """Add one optimizer step, given the mean of `step` over all processes."""
        self.step = None
        self._line = sums if self._line is None else self._line + sums
        self._run = sums if self._run is None else self._run + sums
        self._line_steps += 1
        self._run_steps += 1

    def since_last(self) -> Means | None:
        """Means since the last call, read from the device in one transfer; None if there was no step."""
        means = _means(self._line, self._line_steps)
        self._line, self._line_steps = None, 0
        self.last = means or self.last
        return means

    @property
    def has_steps(self) -> bool:
        """Whether any optimizer step was added."""
        return self._run is not None

    def over_run(self) -> Means | None:
        """Means over all steps; None if there was none."""
        return _means(self._run, self._run_steps)


def _means(sums: Tensor | None, steps: int) -> Means | None:
    if sums is None:
        return None
    task_loss, lbe_loss, measured, skipped, batches, *entropies = sums.tolist()
    return Means(
        task_loss / steps,
        lbe_loss / steps,
        unmeasured=1 - measured / batches,
        skipped=skipped / batches,
        entropies=[entropy / measured for entropy in entropies] if measured else [],
    )
