"""What a regularized run says of its layers between two log lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def by_layer(line: Mapping[str, Any], quantity: str) -> list[float]:
    """What a log line says of each layer, first to last; empty if it says nothing. `quantity`: "entropy" or "target".

    By number: a resumed run has its log sorted by name, where layer 100 comes before layer 11.
    """
    names = [name for name in line if name.startswith(f"{quantity}/layer_")]
    return [line[name] for name in sorted(names, key=lambda name: int(name.rpartition("_")[2]))]


class EntropyMonitor:
    """Sums of losses and entropies, kept on the device so that a training step never waits for them."""

    def __init__(self) -> None:
        self.entropies: list[float] = []
        """Mean batch entropy of each layer, in nats, as `means` read it last; empty if nothing was measured."""
        self._sums: Tensor | None = None
        self._steps = 0

    def add(self, loss: Tensor, penalty: Tensor, entropies: Tensor, measured: Tensor) -> None:
        """Count one micro-batch; if nothing was measured in it, only its loss counts.

        Args:
            loss: regularized loss as it goes into the gradient, shape `()`: `task_loss * (1 + penalty)`, already
                divided by what gradient accumulation divides it by.
            penalty: penalty that `loss` contains, shape `()`.
            entropies: batch entropies in nats, shape `(L,)`.
            measured: whether the entropies could be measured, shape `()`.
        """
        task_loss = loss / (1 + penalty)
        heads = torch.stack([task_loss, loss - task_loss, measured.to(loss.dtype), torch.ones_like(loss)])
        sums = torch.cat([heads.float(), entropies.float() * measured])
        self._sums = sums if self._sums is None else self._sums + sums

    def end_step(self) -> None:
        """Count one optimizer step."""
        self._steps += 1

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last call, read from the device at once; empty if there was no step. Starts anew.

        Args:
            reduce: averages a tensor over processes.
        """
        if self._sums is None or not self._steps:
            return {}
        task_loss, lbe_loss, measured, batches, *entropies = reduce(self._sums).tolist()
        steps, self._sums, self._steps = self._steps, None, 0
        self.entropies = [entropy / measured for entropy in entropies] if measured else []
        logs = {"task_loss": task_loss / steps, "lbe_loss": lbe_loss / steps, "unmeasured": 1 - measured / batches}
        if self.entropies:
            logs["entropy_mean"] = sum(self.entropies) / len(self.entropies)
            logs["entropy_min"] = min(self.entropies)
            logs["entropy_last"] = self.entropies[-1]
        return logs
