"""The penalty on the distance of the batch entropy of each layer from a learnable target (Peer et al., TMLR 2022)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Form = Literal["product", "additive"]


class LBERegularizer(nn.Module):
    """Layerwise batch-entropy penalty with one learnable target per layer.

    `target_l = max(|alpha_l|, alpha_min)` and `penalty = mean over layers of beta * (H_l - target_l)^2`, as in the
    authors' code for arXiv 2208.01134; a training loop uses
    `loss = task_loss * (1 + regularizer(entropies))`, or adds the penalty. Entropies and targets are in nats; the
    penalty has no unit.

    Args:
        num_layers: number of layers, L >= 1.
        alpha: initial value of every learnable target, at least alpha_min in absolute value (default 0.5; the paper
            tries 0.2, 0.3, 0.5 and 0.8).
        alpha_min: lower bound of every target, >= 0 (default 0.2, as in the paper).
        beta: strength of the penalty, >= 0 (default 0.01; the paper tries 0.005, 0.01 and 0.05).

    Raises:
        ValueError: an argument is outside its range.

    >>> regularizer = LBERegularizer(num_layers=2, alpha=0.5, beta=0.1)
    >>> round(regularizer(torch.tensor([0.5, 1.5])).item(), 4)  # 0.1 * (0 + 1) / 2
    0.05

    In a training loop, where `activations` holds the output of each layer:

    >>> from lbe_hf import batch_entropies
    >>> activations, task_loss = [torch.zeros(8, 4), torch.zeros(8, 4)], torch.tensor(2.0)
    >>> loss = task_loss * (1 + regularizer(batch_entropies(activations)))  # entropies 0, targets 0.5
    >>> round(loss.item(), 4)  # 2 * (1 + 0.1 * 0.25)
    2.05
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
        """Target of the batch entropy of each layer in nats, shape `(L,)`."""
        return self.alpha.abs().clamp(min=self.alpha_min)

    def forward(self, entropies: Tensor) -> Tensor:
        """Penalty, shape `()`, for the batch entropies of the layers, shape `(L,)`."""
        if entropies.shape != self.alpha.shape:
            raise ValueError(
                f"Expected {len(self.alpha)} entropies, one per target, but got shape {tuple(entropies.shape)}."
            )
        return self.beta * (entropies - self.target).square().mean()

    def extra_repr(self) -> str:
        return f"num_layers={len(self.alpha)}, alpha_min={self.alpha_min}, beta={self.beta}"


def check_settings(*, beta: float, alpha: float, alpha_min: float) -> None:
    """Raise a ValueError if a setting of the penalty is out of range."""
    for name, value in {"beta": beta, "alpha_min": alpha_min}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be zero or positive, not {value}.")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, not {alpha}.")
    if abs(alpha) < alpha_min:
        raise ValueError(
            f"alpha must be at least alpha_min ({alpha_min}), not {alpha}: below alpha_min a target has no gradient."
        )


def add_penalty(task_loss: Tensor, penalty: Tensor, form: Form, steps: int) -> tuple[Tensor, Tensor]:
    """The regularized loss, and whether the penalty was skipped, both of shape `()`.

    `"product"` is `task_loss * (1 + penalty)`, as in the paper. The penalty is skipped if the task loss is zero or
    negative, because it would then have no effect or move the entropies away from their targets, and if it is not
    finite, because the gradient of the penalty would then not be finite either: that of a batch without labels is
    zero, although its loss is NaN. The check does not synchronize with the device. `"additive"` is
    `task_loss + penalty / steps`.

    Args:
        steps: gradient accumulation steps by which the task loss was divided.
    """
    if form == "additive":
        return task_loss + penalty / steps, torch.zeros_like(penalty, dtype=torch.bool)
    usable = (task_loss.detach() > 0) & task_loss.detach().isfinite()
    # `where` also cuts the gradient: a factor of zero would make NaN of one that is not finite.
    return task_loss * torch.where(usable, 1 + penalty, 1.0), ~usable
