"""Whether a gradient of an activation reaches what is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def train_nothing(values: Iterable[Tensor]) -> list[bool]:
    """For each tensor whether its gradient reaches no trainable parameter.

    Found by walking the graph of autograd from the tensor towards its inputs. A gradient that enters a segment of
    reentrant activation checkpointing counts as one that reaches parameters: its graph is not known before backward.
    """
    trains: dict[Any, bool] = {}
    return [not _trains(value.grad_fn, trains) for value in values]


def _trains(start: Any, known: dict[Any, bool]) -> bool:
    """Whether a parameter is reached from a node; `known` keeps what the walks found."""
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
