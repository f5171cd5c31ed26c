"""Checks whether the gradient of an activation reaches trainable parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def train_nothing(values: Iterable[Tensor]) -> list[bool]:
    """For each tensor, whether its gradient reaches no trainable parameter.

    Walks the autograd graph from the tensor to its inputs. A gradient that enters a segment of reentrant activation
    checkpointing counts as reaching parameters, because the graph of the segment is unknown before backward.
    """
    trains: dict[Any, bool] = {}
    return [not _trains(value.grad_fn, trains) for value in values]


def _trains(start: Any, known: dict[Any, bool]) -> bool:
    """Whether a trainable parameter is reachable from a node; `known` caches the results."""
    seen: set[Any] = set()
    pending = [start]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if known.get(node) or node.name() == "CheckpointFunctionBackward" or _is_parameter(node):
            known[start] = True
            return True
        if node not in known:
            pending += [following for following, _ in node.next_functions]
    known.update(dict.fromkeys(seen, False))
    return False


def _is_parameter(node: Any) -> bool:
    variable = getattr(node, "variable", None)  # of AccumulateGrad
    return isinstance(variable, nn.Parameter) and variable.requires_grad
