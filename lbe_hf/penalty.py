"""Adds the penalty for the recorded forward passes of a micro-batch to its loss."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .activations import Activation, Recording, measure_activations
from .checks import check_activations
from .distributed import measure_entropies_over_processes
from .entropy import measure_entropies
from .monitor import Measurement
from .regularizer import add_penalty
from .reporting import Reporter
from .targets import LearnableTargets
from .training_args import LBEArguments


class Penalty:
    """Measures the activations of each micro-batch and adds the penalty for them to its loss.

    Args:
        settings: which activations are regularized, and how they are measured.
        targets: regularizer and targets; with `beta` 0 activations are only measured.
        reporter: receives the warnings.
        batch_size: examples in a full micro-batch.
        synced: whether activations are measured over the samples of all processes.
        held_dtype: as for `measure_entropies`.
    """

    def __init__(
        self,
        settings: LBEArguments,
        targets: LearnableTargets,
        reporter: Reporter,
        *,
        batch_size: int,
        synced: bool = False,
        held_dtype: torch.dtype | None = None,
    ) -> None:
        self._settings, self._targets, self._reporter = settings, targets, reporter
        self._batch_size, self._synced = batch_size, synced
        measure = measure_entropies_over_processes if settings.lbe_sync_batch else measure_entropies
        self._measure = partial(measure, held_dtype=held_dtype)
        self._first = True

    def add(self, task_loss: Tensor, recording: Recording, steps: int) -> tuple[Tensor, Measurement]:
        """The regularized loss `()`, and the measurement it is based on.

        Args:
            steps: gradient accumulation steps by which `task_loss` was divided.

        Raises:
            ValueError: the activations cannot be measured, or the penalty reaches no trainable parameter.
        """
        self._warn_of_unreadable_masks(recording)
        entropies, measured = self._entropies(recording.take(self._settings.lbe_layers))
        regularizer = self._targets.regularizer  # the first forward pass may replace it
        # `measured` is a tensor on the device: reading it would synchronize.
        penalty = regularizer(entropies) * measured
        loss, reversing = add_penalty(task_loss, penalty, self._settings.lbe_form, steps)
        penalty = (penalty * ~reversing).detach()
        measurement = Measurement(penalty, entropies.detach(), measured, reversing & measured)
        return (loss if regularizer.beta > 0 else task_loss), measurement

    def share(self, loss: Tensor, measurement: Measurement, steps: int) -> Tensor:
        """The part of a loss that is not the task loss; `loss` is already divided for gradient accumulation."""
        if self._settings.lbe_form == "product":
            return loss * (measurement.penalty / (1 + measurement.penalty))
        return measurement.penalty / steps

    def _entropies(self, activations: list[Activation]) -> tuple[Tensor, Tensor]:
        """Batch entropy of each layer `(L,)` in the order of the targets, and whether all could be measured `()`."""
        regularizer = self._targets.regularizer
        warnings = check_activations(
            activations,
            self._settings,
            first=self._first,
            penalized=regularizer.beta > 0,
            synced=self._synced,
            batch_size=self._batch_size,
        )
        self._first = False
        for kind, message in warnings.items():
            self._reporter.warn_once(kind, message)
        with torch.set_grad_enabled(regularizer.beta > 0):
            names, entropies, measured = measure_activations(
                activations, self._settings.lbe_samples, self._settings.lbe_ignore_padding, self._measure
            )
            order = self._targets.order(names)
            entropies = entropies if order == sorted(order) else entropies[order]
        device = regularizer.alpha.device
        return entropies.to(device), measured.all().to(device)

    def _warn_of_unreadable_masks(self, recording: Recording) -> None:
        if recording.unreadable_mask and self._settings.lbe_ignore_padding:
            self._reporter.warn_once(
                "unreadable mask",
                f"An attention mask of type {recording.unreadable_mask} cannot be read, so padding is measured too.",
            )
