"""Adds the penalty for the recorded forward passes of a micro-batch to its loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .activations import Activation, Recording
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
        self._measure: Callable[..., tuple[Tensor, Tensor]] = partial(measure, held_dtype=held_dtype)
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
        loss, skipped = add_penalty(task_loss, penalty, self._settings.lbe_form, steps)
        penalty = (penalty * ~skipped).detach()
        measurement = Measurement(penalty, entropies.detach(), measured, skipped & measured)
        return (loss if regularizer.beta > 0 else task_loss), measurement

    def share(self, loss: Tensor, measurement: Measurement, steps: int) -> Tensor:
        """The part of a loss that is not the task loss; `loss` is already divided for gradient accumulation."""
        if self._settings.lbe_form == "product":
            share = loss * (measurement.penalty / (1 + measurement.penalty))
            return share.where(measurement.penalty > 0, 0.0)  # a loss that is not finite has no penalty
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
            names, entropies, measured = self._by_layer(activations)
            order = self._targets.order(names)
            entropies = entropies if order == sorted(order) else entropies[order]
        device = regularizer.alpha.device
        return entropies.to(device), measured.all().to(device)

    def _by_layer(self, activations: list[Activation]) -> tuple[list[str], Tensor, Tensor]:
        """Batch entropy of each layer, averaged over the forward passes in which it could be measured.

        Args:
            activations: of all forward passes. The list is emptied, so that each can be freed once measured.

        Returns:
            Names of the layers, their entropies `(L,)`, and whether they could be measured `(L,)`.

        Raises:
            ValueError: an activation was modified in place after it was recorded.
        """
        for activation in activations:
            if activation.version is not None and activation.value._version != activation.version:
                raise ValueError(
                    f"The output of {activation.name} was modified in place after it was recorded, for example by "
                    "ReLU(inplace=True) or `h += x`: use an out-of-place operation, or name the module that performs "
                    "it."
                )
        of_layers = [activation.name for activation in activations]
        masks = [a.fitting_mask if self._settings.lbe_ignore_padding else None for a in activations]
        activations.reverse()
        values = (activations.pop().value for _ in of_layers)
        entropies, measured = self._measure(values, masks, self._settings.lbe_samples)
        names = list(dict.fromkeys(of_layers))
        if len(names) == len(of_layers):
            return names, entropies, measured
        layer = torch.tensor([names.index(name) for name in of_layers]).to(entropies.device)
        zeros = entropies.new_zeros(len(names))
        counts = zeros.index_add(0, layer, measured.to(entropies.dtype))
        sums = zeros.index_add(0, layer, entropies)  # an entropy that could not be measured is 0
        return names, sums / counts.clamp(min=1), counts > 0

    def _warn_of_unreadable_masks(self, recording: Recording) -> None:
        if recording.unreadable_mask and self._settings.lbe_ignore_padding:
            self._reporter.warn_once(
                "unreadable mask",
                f"An attention mask of type {recording.unreadable_mask} cannot be read, so padding is measured too.",
            )
