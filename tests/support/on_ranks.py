"""What the processes of `ranks` are asked to do."""

from typing import Any

import tiny
import torch
import torch.distributed as dist
from torch import Tensor

from lbe_hf.sync import measure_entropies_over_processes


def measure(
    layers: list[list[Tensor]], masks: list[list[Tensor | None]], weights: list[float], samples: Any
) -> tuple[Tensor, Tensor, list[Tensor], int]:
    """Entropies of this rank's part, whether they were measured, gradients of its loss, and the bytes it sent.

    Args:
        layers: activations of each layer, by rank.
        masks: attention masks of each layer, by rank.
        weights: the loss of a rank is its weight times the sum over layers of `(layer + 1) * entropy`.
    """
    rank, sent, send = dist.get_rank(), 0, dist.all_reduce

    def count(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal sent
        sent += tensor.numel() * tensor.element_size()
        return send(tensor, *args, **kwargs)

    own = [layer.clone().requires_grad_() for layer in layers[rank]]
    dist.all_reduce = count
    try:
        entropies, measured = measure_entropies_over_processes(own, masks[rank], samples)
        loss = sum(entropies[layer] * (layer + 1) for layer in range(len(own))) * weights[rank]
        loss.backward()
    finally:
        dist.all_reduce = send
    return entropies.detach(), measured, [layer.grad for layer in own], sent
