"""The learnable targets: the regularizer with its own optimizer, and its file in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .regularizer import LBERegularizer

TARGETS_NAME = "lbe_targets.safetensors"
"""Checkpoint file with the learnable targets and the state of their optimizer."""

Stored = tuple[dict[str, Tensor], dict[str, str]]
"""Contents of a targets file: tensors; and metadata (`alpha_min`, layer names), which old files lack."""


class LearnableTargets:
    """Learnable targets, kept apart from the model, its optimizer and its saved weights.

    Args:
        num_layers: expected number of layers, L >= 1.
        alpha, alpha_min, beta: as for `LBERegularizer`.
        betas, eps: settings of Adam.
        device: device of the targets.
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
        """Names of the layers, in the order of the targets; placeholders before the first forward pass."""
        return self._known or [f"layer {index}" for index in range(len(self.regularizer.alpha))]

    def order(self, names: Sequence[str]) -> list[int]:
        """Indices that sort these layers into the order of the targets; the first call sets the layers.

        Raises:
            ValueError: the layers differ from those of the first call or of the loaded checkpoint.
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
                f"{len(alpha)} layers have targets, but this batch has {len(names)} activations (missing: "
                f"{', '.join(missing) or 'none'}; without a target: {', '.join(found) or 'none'}). Every forward pass "
                "must call the same modules, and a resumed run needs the same lbe_target_modules and lbe_layers as "
                "its checkpoint."
            )
        return [names.index(name) for name in self._known]

    @property
    def gradient(self) -> Tensor:
        """Accumulated gradient of alpha, shape `(L,)`; zeros if there is none."""
        alpha = self.regularizer.alpha
        return torch.zeros_like(alpha) if alpha.grad is None else alpha.grad

    def step(self, gradient: Tensor, learning_rate: float, scaler: Any = None) -> None:
        """Update the targets with the gradient averaged over all processes, then reset it.

        Args:
            scaler: float16 gradient scaler, which unscales the gradient and skips steps with an overflow.
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
        """Write the targets, their optimizer state and the layer names into the folder."""
        state = {"alpha": self.regularizer.alpha.detach(), **self.optimizer.state.get(self.regularizer.alpha, {})}
        metadata = {"alpha_min": str(self.regularizer.alpha_min)}
        if self._known:
            metadata["layers"] = json.dumps(self._known)
        save_file({name: tensor.cpu() for name, tensor in state.items()}, folder / TARGETS_NAME, metadata)

    @staticmethod
    def read(folder: Path) -> Stored | None:
        """Read the file written by `save`; None if the folder has none.

        Raises:
            ValueError: the file is damaged.
        """
        path = folder / TARGETS_NAME
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors, file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}): resume from another checkpoint, or delete the file to resume with the "
                "initial targets."
            ) from error

    def restore(self, stored: Stored) -> None:
        """Restore the result of `read`.

        Raises:
            ValueError: `alpha_min` was raised above a saved target, which would then have no gradient.
        """
        tensors, metadata = stored
        alpha_min, before = self.regularizer.alpha_min, float(metadata.get("alpha_min", self.regularizer.alpha_min))
        lowest = tensors["alpha"].abs().min().item()
        if before < alpha_min and lowest < alpha_min:
            raise ValueError(
                f"The checkpoint has targets of {lowest:.2f} nats, which would have no gradient with "
                f"lbe_alpha_min={alpha_min}: resume with lbe_alpha_min={before}."
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
