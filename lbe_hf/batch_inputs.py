"""Checks of a batch before it enters a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .moments import has_choices, readable_mask

_NO_CONTENT = ("mask", "label", "position", "token_type", "num_items_in_batch")


@dataclass(frozen=True)
class BatchInputs:
    """The arguments of one forward pass."""

    size: int
    """Number of examples B: the most frequent first dimension of the tensors. Of multiple choice, that of choices."""
    mask: Tensor | None
    """Mask `(B, T)`, True at real tokens; None without an attention mask."""
    alike: bool
    """Whether the batch has two or more examples, all with the same content."""
    only_padding: float
    """Fraction of the examples without a real token; 0 without an attention mask."""
    nonfinite: bool
    """Whether any value is NaN or infinite."""

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> BatchInputs:
        """Inspect all tensors in the arguments, including those in dictionaries. Synchronizes with the device."""
        tensors = dict(_tensors({**{str(index): value for index, value in enumerate(args)}, **kwargs}))
        mask, input_ids = tensors.get("attention_mask"), tensors.get("input_ids")
        if mask is not None and input_ids is not None and has_choices(mask, input_ids):
            both = input_ids.shape[:2]
            tensors = {
                name: value.flatten(0, 1) if value.shape[:2] == both else value for name, value in tensors.items()
            }
        mask = readable_mask(mask, input_ids)
        content = {
            name: value for name, value in tensors.items() if not any(word in name for word in _NO_CONTENT)
        } or tensors
        sizes = Counter(value.shape[0] for value in content.values()).most_common(1)
        if not sizes:
            return BatchInputs(0, mask, alike=False, only_padding=0.0, nonfinite=False)
        size = sizes[0][0]
        values = [value for value in content.values() if value.shape[0] == size]
        real = [value if mask is None else _without_padding(value, mask) for value in values]
        return BatchInputs(
            size,
            mask,
            alike=size > 1 and all(bool((value == value[:1]).all()) for value in real),
            only_padding=0.0 if mask is None else float((~mask.any(1)).float().mean()),
            nonfinite=any(not bool(value.isfinite().all()) for value in values if value.is_floating_point()),
        )


def _tensors(values: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.numel() > 0:
            yield name, value
        elif isinstance(value, Mapping):
            yield from _tensors(value)


def _without_padding(value: Tensor, mask: Tensor) -> Tensor:
    """The tensor with zeros at padding, or unchanged if the mask does not match its shape."""
    if value.shape[:2] != mask.shape:
        return value
    return torch.where(mask.view(*mask.shape, *[1] * (value.dim() - 2)), value, 0)
