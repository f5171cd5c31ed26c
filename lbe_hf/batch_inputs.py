"""What is wrong with a batch before any model sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .moments import real_tokens

_NO_CONTENT = ("mask", "label", "position", "token_type", "num_items_in_batch")


@dataclass(frozen=True)
class BatchInputs:
    """The arguments of one forward pass."""

    rows: int
    """Examples of the batch, B: the first dimension of most tensors."""
    mask: Tensor | None
    """Where tokens are real, `(B, T)`, by the attention mask."""
    alike: bool
    """Whether all of two or more examples have the same content."""
    only_padding: float
    """Share of the examples without a real token; 0 without an attention mask."""
    nonfinite: bool
    """Whether there are values that are NaN or infinite."""

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> BatchInputs:
        """Reads the tensors in the arguments, also those in a dictionary; waits for the device."""
        tensors = dict(_tensors({**{str(index): value for index, value in enumerate(args)}, **kwargs}))
        given = next((value for name, value in tensors.items() if name == "attention_mask"), None)
        mask = real_tokens(given) if given is not None and 2 <= given.dim() <= 4 else None
        content = {
            name: value for name, value in tensors.items() if not any(word in name for word in _NO_CONTENT)
        } or tensors
        rows = Counter(value.shape[0] for value in content.values()).most_common(1)
        if not rows:
            return BatchInputs(0, mask, alike=False, only_padding=0.0, nonfinite=False)
        count = rows[0][0]
        values = [value for value in content.values() if value.shape[0] == count]
        real = [value if mask is None else _without_padding(value, mask) for value in values]
        return BatchInputs(
            count,
            mask,
            alike=count > 1 and all(bool((value == value[:1]).all()) for value in real),
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
    """The same with zeros at padding, where the mask fits."""
    if value.shape[:2] != mask.shape:
        return value
    return torch.where(mask.view(*mask.shape, *[1] * (value.dim() - 2)), value, 0)
