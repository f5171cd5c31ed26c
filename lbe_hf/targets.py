"""The learnable targets of a run: the regularizer with an optimizer of its own, and its file in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .regularizer import LBERegularizer

TARGETS_NAME = "lbe_targets.safetensors"
"""File of a checkpoint that holds the learnable targets and the state of their optimizer."""

Stored = tuple[dict[str, Tensor], dict[str, str]]
"""What a file of targets holds: tensors, and as text `alpha_min` and the names of the layers, if it is not older."""


class LearnableTargets:
    """Targets that learn beside a model: nothing of them is in the model, in its optimizer, or saved with it.

    Args:
        num_layers: how many layers are expected, L >= 1.
        alpha, alpha_min, beta: as for `LBERegularizer`.
        betas, eps: of Adam.
        device: where the targets are.
    """

    def __init__(
        self,
        num_layers: int,
        *,
        alpha: float,
        alpha_min: float,
        beta: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        device: torch.device | str = "cpu",
    ) -> None:
        self._settings = {"alpha": alpha, "alpha_min": alpha_min, "beta": beta}
        self._adam = {"betas": betas, "eps": eps}
        self._device = device
        self._known: list[str] | None = None
        self._fixed = False
        self._make(num_layers)

    def _make(self, num_layers: int) -> None:
        self.regularizer = LBERegularizer(num_layers, **self._settings).to(self._device)
        self.optimizer = torch.optim.Adam(self.regularizer.parameters(), **self._adam)  # type: ignore[arg-type]

    @property
    def names(self) -> list[str]:
        """Names of the layers, in the order of the targets; numbers before the first forward pass."""
        return self._known or [f"layer {index}" for index in range(len(self.regularizer.alpha))]

    def order(self, names: Sequence[str]) -> list[int]:
        """Indices that put these layers into the order of the targets; the first call decides which layers there are.

        Raises:
            ValueError: they are not the layers of the first call, or of the checkpoint that was loaded.
        """
        alpha = self.regularizer.alpha
        if self._known is None and (len(names) == len(alpha) or not self._fixed):
            if len(names) != len(alpha):
                self._make(len(names))
            self._known, self._fixed = list(names), True
        if self._known is None or sorted(self._known) != sorted(names):
            missing = [name for name in self._known or [] if name not in names]
            found = [name for name in names if name not in (self._known or [])]
            raise ValueError(
                f"{len(alpha)} layers have targets, but this batch gave {len(names)} activations (missing: "
                f"{', '.join(missing) or 'none'}; without a target: {', '.join(found) or 'none'}): every forward pass "
                "must call the same modules, and a resumed run must name the layers that its checkpoint was made with "
                "(lbe_target_modules, lbe_layers)."
            )
        return [names.index(name) for name in self._known]

    @property
    def gradient(self) -> Tensor:
        """Gradient of alpha so far, shape `(L,)`; zeros if there is none."""
        alpha = self.regularizer.alpha
        return torch.zeros_like(alpha) if alpha.grad is None else alpha.grad

    def step(self, gradient: Tensor, learning_rate: float, scaler: Any = None) -> None:
        """Step with this gradient, that of all processes, and discard it.

        Args:
            scaler: gradient scaler of float16, which takes the loss scale out and skips steps that overflowed.
        """
        self.regularizer.alpha.grad = gradient.clone()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
        self.optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        """Write the targets, the state of their optimizer and the names of the layers into the folder."""
        state = {"alpha": self.regularizer.alpha.detach(), **self.optimizer.state.get(self.regularizer.alpha, {})}
        metadata = {"alpha_min": str(self.regularizer.alpha_min)}
        if self._known:
            metadata["layers"] = json.dumps(self._known)
        save_file({name: tensor.cpu() for name, tensor in state.items()}, folder / TARGETS_NAME, metadata)

    @staticmethod
    def read(folder: Path) -> Stored | None:
        """What `save` wrote into the folder; None if there is nothing."""
        path = folder / TARGETS_NAME
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}

    def restore(self, stored: Stored) -> None:
        """Resume from what `read` gave.

        Raises:
            ValueError: targets lie below an `alpha_min` that was raised, where they have no gradient.
        """
        tensors, metadata = stored
        alpha_min, before = self.regularizer.alpha_min, float(metadata.get("alpha_min", self.regularizer.alpha_min))
        lowest = tensors["alpha"].abs().min().item()
        if before < alpha_min and lowest < alpha_min:
            raise ValueError(
                f"The checkpoint has targets of {lowest:.2f} nats, which lbe_alpha_min={alpha_min} would keep from "
                f"learning: resume with lbe_alpha_min={before} as before."
            )
        state = {name: tensor for name, tensor in tensors.items() if name != "alpha"}
        if tensors["alpha"].shape != self.regularizer.alpha.shape:
            self._make(len(tensors["alpha"]))
        with torch.no_grad():
            self.regularizer.alpha.copy_(tensors["alpha"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {0: state} if state else {}, "param_groups": groups})
        names = json.loads(metadata["layers"]) if "layers" in metadata else None
        self._known, self._fixed = names or self._known, True
