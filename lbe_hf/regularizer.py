"""The penalty that steers each layer's batch entropy to a learnable target (Peer et al., TMLR 2022)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Form = Literal["product", "additive"]


class LBERegularizer(nn.Module):
    """Layerwise batch-entropy penalty with one learnable target a layer.

    `target_l = max(|alpha_l|, alpha_min)` and `penalty = mean over layers of beta * (H_l - target_l)^2`, as in the
    authors' code for arXiv 2208.01134; a training loop multiplies its task loss with it,
    `loss = task_loss * (1 + regularizer(entropies))`, or adds it. Entropies and targets are in nats, the penalty has
    no unit.

    Args:
        num_layers: number of entropies that `forward` will be given, L >= 1.
        alpha: start of every learnable target, at least alpha_min in size (default 0.5; the paper tries 0.2, 0.3, 0.5
            and 0.8).
        alpha_min: floor under every target, >= 0 (default 0.2, as in the paper).
        beta: strength of the penalty, >= 0 (default 0.01; the paper tries 0.005, 0.01 and 0.05).

    Raises:
        ValueError: an argument is outside its range.

    >>> regularizer = LBERegularizer(num_layers=2, alpha=0.5, beta=0.1)
    >>> round(regularizer(torch.tensor([0.5, 1.5])).item(), 4)  # 0.1 * (0 + 1) / 2
    0.05
    """

    def __init__(self, num_layers: int, alpha: float = 0.5, alpha_min: float = 0.2, beta: float = 0.01) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, not {num_layers}.")
        check_settings(beta=beta, alpha=alpha, alpha_min=alpha_min)
        self.beta = beta
        self.alpha_min = alpha_min
        self.alpha = nn.Parameter(torch.full((num_layers,), float(alpha)))

    @property
    def target(self) -> Tensor:
        """Entropy that each layer is steered to, in nats, shape `(L,)`."""
        return self.alpha.abs().clamp(min=self.alpha_min)

    def forward(self, entropies: Tensor) -> Tensor:
        """Penalty, shape `()`, for the batch entropies of the layers, shape `(L,)`."""
        if entropies.shape != self.alpha.shape:
            raise ValueError(f"{len(self.alpha)} layers have targets, but {tuple(entropies.shape)} entropies came.")
        return self.beta * (entropies - self.target).square().mean()

    def extra_repr(self) -> str:
        return f"num_layers={len(self.alpha)}, alpha_min={self.alpha_min}, beta={self.beta}"


def check_settings(*, beta: float, alpha: float, alpha_min: float) -> None:
    """Raise a ValueError for a setting of the penalty that is outside its range."""
    for name, value in {"beta": beta, "alpha_min": alpha_min}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be zero or positive, not {value}.")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, not {alpha}.")
    if abs(alpha) < alpha_min:
        raise ValueError(
            f"alpha must be at least alpha_min, {alpha_min}, not {alpha}: below it a target has no gradient and never "
            "learns."
        )


def add_penalty(task_loss: Tensor, penalty: Tensor, form: Form, steps: int = 1) -> tuple[Tensor, Tensor]:
    """The regularized loss, and whether the penalty was left out, both of shape `()`.

    `"product"` is the paper's `task_loss * (1 + penalty)`. Where the task loss is zero or negative, it would have no
    effect or drive the entropies away from their targets, and the penalty is left out, without waiting for the device.
    `"additive"` is `task_loss + penalty / steps`.

    Args:
        steps: gradient accumulation steps by which the task loss is divided already.
    """
    if form == "additive":
        return task_loss + penalty / steps, torch.zeros_like(penalty, dtype=torch.bool)
    reversing = task_loss.detach() <= 0
    return task_loss * (1 + penalty * ~reversing), reversing
