"""Entries of a log line with one value for each layer, as `entropy/layer_00`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def layer_entries(quantity: str, values: Iterable[float]) -> dict[str, float]:
    """One entry for each layer, which `by_layer` reads."""
    return {f"{quantity}/layer_{index:02d}": value for index, value in enumerate(values)}


def by_layer(line: Mapping[str, Any], quantity: str) -> list[float]:
    """Values of a log line for each layer, in order; empty if there are none. `quantity`: "entropy" or "target".

    Sorted by number, because the log of a resumed run is sorted by name, with layer 100 before layer 11.
    """
    names = [name for name in line if name.startswith(f"{quantity}/layer_")]
    return [line[name] for name in sorted(names, key=lambda name: int(name.rpartition("_")[2]))]
