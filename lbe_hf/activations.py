"""Activations of the layers of a model in its forward passes, and their batch entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .entropy import measure_entropies
from .moments import Samples, real_tokens


@dataclass(frozen=True)
class Activation:
    """Output of one layer in one forward pass."""

    name: str
    value: Tensor  # (B, ...)
    mask: Tensor | None  # (B, T), True at real tokens, whether it fits or not
    version: int | None  # of `value` when it was taken; None where in-place changes cannot be seen

    @staticmethod
    def of(name: str, value: Tensor, mask: Tensor | None) -> Activation:
        untracked = torch.compiler.is_compiling() or value.is_inference()
        return Activation(name, value, mask, None if untracked else value._version)

    @property
    def mask_fits(self) -> bool:
        """Whether the second dimension is that of the mask: a pooled `(B, D)` output has no positions to mask."""
        return self.mask is not None and self.value.dim() > 2 and self.value.shape[:2] == self.mask.shape

    def most_samples(self, samples: Samples) -> int:
        """How many samples a unit has where nothing is padding."""
        positions = self.value.shape[1] if samples == "token" and self.value.dim() > 2 else 1
        return self.value.shape[0] * positions


@dataclass
class Recording:
    """The forward passes made while an activation source listened."""

    passes: list[list[Activation]] = field(default_factory=list)
    """One list for each forward pass, in the order of the layers."""
    sink: Callable[[Activation], None] | None = None
    """Takes each activation when it is made, so that none is held; None: they are recorded in `passes`."""
    taken: int = 0
    """Activations that were recorded or went to the sink."""
    without_gradient: int = 0
    """Forward passes that were not recorded, because gradients were disabled."""
    unreadable_mask: str | None = None
    """Type of an attention mask that is no tensor of two to four dimensions."""

    def record(self, activations: list[Activation], activation: Activation) -> None:
        """Take an activation of the forward pass whose others are in this list of `passes`."""
        self.taken += 1
        if self.sink is None:
            activations.append(activation)
        else:
            self.sink(activation)

    def take(self, layers: Sequence[int] | None) -> list[Activation]:
        """Activations that `layers` names, pass by pass, all of them for None; they are no longer recorded here.

        Raises:
            ValueError: an index is out of range.
        """
        passes, self.passes = self.passes, []
        for activations in passes:
            check_layers(layers, len(activations))
        return [
            activation
            for activations in passes
            for activation in (activations if layers is None else [activations[index] for index in layers])
        ]

    def padding_masks(self, given: Callable[[str], Any]) -> tuple[Tensor | None, Tensor | None]:
        """Masks of the real tokens `(B, T)` in the input and in the decoder's, by the arguments of a `forward`.

        None where there is none, or one that cannot be read. A decoder's may be read off the labels.
        """
        masks: list[Tensor | None] = []
        for mask in (given("attention_mask"), given("decoder_attention_mask")):
            if isinstance(mask, Tensor) and 2 <= mask.dim() <= 4:
                masks.append(real_tokens(mask))
            else:
                masks.append(None)
                self.unreadable_mask = type(mask).__name__ if mask is not None else self.unreadable_mask
        return masks[0], labelled(given("labels")) if masks[1] is None else masks[1]

    def check(self, models: str, nothing: str) -> None:
        """Raise a ValueError if there is no activation.

        Args:
            models: names of the models, for the message where all their passes were made without gradient.
            nothing: the message for any other case.
        """
        if self.taken:
            return
        if self.without_gradient:
            raise ValueError(
                f"The loss is computed from forward passes of {models} without gradient, which the penalty cannot "
                "train: use a loss that does not cache gradients."
            )
        raise ValueError(nothing)


class ActivationSource(Protocol):
    """Takes activations from the forward passes made inside `listen`."""

    @property
    def expected(self) -> int | None:
        """How many layers there are, where that is known before the first forward pass."""

    def listen(
        self,
        labels: Tensor | None = None,
        *,
        with_gradient: bool = True,
        sink: Callable[[Activation], None] | None = None,
    ) -> AbstractContextManager[Recording]:
        """Context in which forward passes are recorded.

        Args:
            labels: labels that the model itself may not get, by which padding of a decoder is known.
            with_gradient: record only passes made with gradients enabled.
            sink: takes each activation when it is made, instead of the recording.

        Raises:
            ValueError: on leaving the context, if nothing was recorded.
        """


def measure_activations(
    activations: list[Activation],
    samples: Samples,
    ignore_padding: bool,
    measure: Callable[..., tuple[Tensor, Tensor]] = measure_entropies,
) -> tuple[list[str], Tensor, Tensor]:
    """Batch entropy of each layer, the mean over the forward passes that could be measured.

    Args:
        activations: of all forward passes; the list is emptied, so that each can be let go when it is measured.
        samples: as for `batch_entropy`.
        ignore_padding: leave padding out, each pass by its own mask.
        measure: `measure_entropies`, or a function that is called like it.

    Returns:
        Names of the layers, their entropies `(L,)`, and whether they could be measured `(L,)`.

    Raises:
        ValueError: an activation was changed in place after it was taken.
    """
    for activation in activations:
        if activation.version is not None and activation.value._version != activation.version:
            raise ValueError(
                f"The output of {activation.name} was changed in place after it was taken, as by ReLU(inplace=True) "
                "or `h += x`: make that operation out of place, or name the module that performs it."
            )
    of_layers = [activation.name for activation in activations]
    masks = [a.mask if ignore_padding and a.mask_fits else None for a in activations]
    activations.reverse()
    values = (activations.pop().value for _ in of_layers)
    entropies, measured = measure(values, masks, samples)
    names = list(dict.fromkeys(of_layers))
    if len(names) == len(of_layers):
        return names, entropies, measured
    layer = torch.tensor([names.index(name) for name in of_layers]).to(entropies.device)
    zeros = entropies.new_zeros(len(names))
    counts = zeros.index_add(0, layer, measured.to(entropies.dtype))
    sums = zeros.index_add(0, layer, entropies)  # an entropy that could not be measured is 0
    return names, sums / counts.clamp(min=1), counts > 0


def check_layers(layers: Sequence[int] | None, count: int) -> None:
    """Raise a ValueError for a layer index that `count` activations do not have."""
    for index in layers or ():
        if not -count <= index < count:
            raise ValueError(
                f"lbe_layers names layer {index}, but there are {count} activations: use {-count} to {count - 1}."
            )


def labelled(labels: Any) -> Tensor | None:
    """Where labels `(B, T)` are not -100: what is no padding for a decoder that gets no mask of its own."""
    return labels != -100 if isinstance(labels, Tensor) and labels.dim() == 2 else None
