"""Layer activations recorded during forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .moments import Samples, fitting, readable_mask


@dataclass(frozen=True)
class Activation:
    """Output of one layer in one forward pass."""

    name: str
    value: Tensor  # (B, ...)
    mask: Tensor | None  # (B, T), True at real tokens; its shape may not match `value`, see `fitting_mask`
    version: int | None  # version counter of `value` when recorded; None if autograd does not track changes in place
    batch_sizes: frozenset[int] = frozenset()  # of the inputs of the model that computed `value`; empty if unknown

    @staticmethod
    def of(name: str, value: Tensor, mask: Tensor | None, batch_sizes: frozenset[int] = frozenset()) -> Activation:
        untracked = torch.compiler.is_compiling() or value.is_inference()
        return Activation(name, value, mask, None if untracked else value._version, batch_sizes)

    @property
    def fitting_mask(self) -> Tensor | None:
        """The mask if it matches the first two dimensions of `value`."""
        return fitting(self.mask, self.value)

    @property
    def is_misfit(self) -> bool:
        """Whether the mask does not match positions that `value` has, so that its padding cannot be left out."""
        return self.mask is not None and self.value.dim() > 2 and self.fitting_mask is None

    @property
    def is_not_by_example(self) -> bool:
        """Whether the first dimension of `value` is not the batch, as in the layout `(T, B, D)` or in windows."""
        return bool(self.batch_sizes) and self.value.dim() > 2 and self.value.shape[0] not in self.batch_sizes

    def most_samples(self, samples: Samples) -> int:
        """Number of samples of a unit when no position is padding."""
        positions = self.value.shape[1] if samples == "token" and self.value.dim() > 2 else 1
        return self.value.shape[0] * positions


@dataclass
class Recording:
    """Forward passes recorded by an activation source."""

    passes: list[list[Activation]] = field(default_factory=list)
    """One list for each forward pass, in the order of the layers."""
    sink: Callable[[Activation], None] | None = None
    """Receives each activation as soon as it is computed, so that none is stored. None: store them in `passes`."""
    taken: int = 0
    """Number of activations recorded or passed to the sink."""
    called: bool = False
    """Whether there was a forward pass, recorded or not."""
    without_gradient: int = 0
    """Number of forward passes not recorded because gradients were disabled."""
    unreadable_mask: str | None = None
    """Type of an attention mask that is not a tensor with two to four dimensions, if there was one."""

    def record(self, activations: list[Activation], activation: Activation) -> None:
        """Append an activation to the list of its forward pass, or pass it to the sink."""
        self.taken += 1
        if self.sink is None:
            activations.append(activation)
        else:
            self.sink(activation)

    def take(self, layers: Sequence[int] | None) -> list[Activation]:
        """Remove and return the recorded activations, pass by pass.

        Args:
            layers: indices of the activations to return from each pass; None: all of them.

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
        """Masks of the real tokens `(B, T)` for the input and for the decoder, from the arguments of a `forward`.

        A mask is None if it is missing or cannot be read. A missing decoder mask is derived from the labels.

        Args:
            given: returns the value of an argument by its name, or None.
        """
        masks: list[Tensor | None] = []
        for mask in (given("attention_mask"), given("decoder_attention_mask")):
            masks.append(readable_mask(mask, given("input_ids")))
            if mask is not None and masks[-1] is None:
                self.unreadable_mask = type(mask).__name__
        return masks[0], labelled(given("labels")) if masks[1] is None else masks[1]

    def check(self, models: str, nothing: str) -> None:
        """Raise a ValueError if nothing was recorded.

        Args:
            models: names of the models, for the error raised when gradients were disabled in all forward passes.
            nothing: message for all other cases.
        """
        if self.taken:
            return
        if self.without_gradient:
            raise ValueError(
                f"The loss calls {models} only with gradients disabled, so the penalty cannot train the model: use a "
                "loss that does not cache gradients."
            )
        raise ValueError(nothing)


class ActivationSource(Protocol):
    """Records activations of the forward passes made inside the context `listen`."""

    @property
    def expected(self) -> int | None:
        """Number of layers, or None if it is unknown before the first forward pass."""

    def listen(
        self,
        batch: Mapping[str, Any] | None = None,
        *,
        with_gradient: bool = True,
        sink: Callable[[Activation], None] | None = None,
    ) -> AbstractContextManager[Recording]:
        """Context in which forward passes are recorded.

        Args:
            batch: has the labels, from which the padding of a decoder is derived, and the attention mask; the model
                itself may not receive them.
            with_gradient: record only passes made with gradients enabled.
            sink: receives each activation as soon as it is computed; the recording then stores none.

        Raises:
            ValueError: when leaving the context, if nothing was recorded.
        """


def check_layers(layers: Sequence[int] | None, count: int) -> None:
    """Raise a ValueError if a layer index is out of range for `count` activations."""
    for index in layers or ():
        if not -count <= index < count:
            raise ValueError(
                f"lbe_layers names layer {index}, but there are {count} activations: use {-count} to {count - 1}."
            )


def misfits_in_words(names: Iterable[str]) -> str:
    """A warning about activations that are misfits."""
    return (
        "The padding mask does not match the length of these activations, so their padding is measured too: "
        f"{', '.join(names)}."
    )


def not_by_example_in_words(names: Iterable[str]) -> str:
    """A warning about activations whose first dimension is not the batch."""
    return (
        "The first dimension of these activations is not the batch, so that their variance does not run over the "
        f"examples: {', '.join(names)}. Name other modules, or measure over tokens."
    )


def shifted_mask(given: Callable[[str], Any], mask: Tensor | None) -> Tensor | None:
    """Mask of a decoder that reads the input, shifted right by one, as that of a classifier; None if it does not.

    Args:
        given: returns the value of an argument of `forward` by its name, or None.
        mask: of the input, `(B, T)`.
    """
    own = ("decoder_input_ids", "decoder_inputs_embeds", "decoder_attention_mask")
    if mask is None or labelled(given("labels")) is not None or any(given(name) is not None for name in own):
        return None
    return torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], 1)


def labelled(labels: Any) -> Tensor | None:
    """Mask that is True where labels `(B, T)` are not -100: the real tokens of a decoder without a mask of its own.

    None for the labels of a multi-label classification, `(B, classes)`, which are floating-point numbers.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
        return None
    return labels != -100
