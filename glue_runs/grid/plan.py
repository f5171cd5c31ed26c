"""The runs that follow from the arguments of a grid."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..analysis.shapes import DESCRIBED_BY
from ..finetune.arguments import EXCLUDED_FROM_RUN_ID, changed_settings
from .arguments import ACTIVATIONS, PROTOCOLS, GridArguments


@dataclass(frozen=True)
class Run:
    """One run, identified by its settings: `name` is readable, and unique to what the run computes."""

    task: str
    model: str
    learning_rate: float
    seed: int
    activations: str | None  # None: the baseline
    alpha: float | None
    beta: float
    protocol: str
    fixed: tuple[str, ...] = ()
    measured: str = "hidden_states"
    """Activations whose entropy the baseline logs; they do not change what it computes."""

    @property
    def method(self) -> str:
        """Name of the method: the regularized activations, and the fixed settings of LBE."""
        activations = "baseline" if self.activations is None else f"LBE on {self.activations}"
        return ", ".join([activations, *self._fixed_settings_as_text(of_lbe=True)])

    @property
    def fixed_settings(self) -> str:
        """The other fixed settings, as in `max_length=64, precision=bf16`: compared runs must share them."""
        return ", ".join(self._fixed_settings_as_text(of_lbe=False))

    def _fixed_settings_as_text(self, of_lbe: bool) -> list[str]:
        settings, without_fixed = self.settings, replace(self, fixed=()).settings
        names = sorted(settings.keys() | without_fixed.keys())
        changed = [name for name in names if settings.get(name) != without_fixed.get(name)]
        return [f"{name}={settings.get(name, 'default')}" for name in changed if name.startswith("lbe_") == of_lbe]

    @property
    def description(self) -> dict[str, Any]:
        """What is known of the run before it is done."""
        return {name: getattr(self, name) for name in (*DESCRIBED_BY, "settings")}

    def argv(self) -> list[str]:
        """Arguments for `finetune`."""
        activations = self.activations or self.measured
        modules = ACTIVATIONS.get(activations, activations)
        split = ["--split_seed", str(self.seed)] if self.protocol == "authors" else []
        return [
            *("--task_name", self.task, "--model_name_or_path", self.model),
            *("--learning_rate", repr(self.learning_rate), "--seed", str(self.seed), "--lbe_beta", repr(self.beta)),
            *([] if self.alpha is None else ["--lbe_alpha", repr(self.alpha)]),
            *([] if modules is None else ["--lbe_target_modules", modules]),
            *("--lbe_log_entropy", "true", "--logging_steps", "0.05"),
            *PROTOCOLS[self.protocol],
            *split,
            *self.fixed,
        ]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What defines the run: the settings that differ from their defaults and change what is computed."""
        changed = changed_settings(self.argv())
        baseline = self.activations is None
        defining = {
            name: value
            for name, value in changed.items()
            if not EXCLUDED_FROM_RUN_ID.fullmatch(name) and not (baseline and name.startswith("lbe_"))
        }
        swept = {"task_name": self.task, "model_name_or_path": self.model, "seed": self.seed}
        return {**defining, **swept, "learning_rate": self.learning_rate, "lbe_beta": self.beta}

    @cached_property
    def name(self) -> str:
        """Folder name: the swept values in words, and a hash of everything that defines the run."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        method = "baseline"
        if self.activations is not None:
            kind = self.activations if self.activations in ACTIVATIONS else "modules"
            method = f"{kind}-a{self.alpha:g}-b{self.beta:g}"
        model = re.sub(r"[^\w.-]+", "_", self.model.rstrip("/").split("/")[-1])
        return f"{self.task}-{model}-lr{self.learning_rate:g}-seed{self.seed}-{method}-{digest}"


def plan_runs(grid: GridArguments, fixed: list[str]) -> list[Run]:
    """The runs of a grid, each once, ordered by task, model and seed: runs that are compared come together."""
    runs: dict[str, Run] = {}
    for task, model, seed, rate in itertools.product(grid.tasks, grid.models, grid.seeds, grid.learning_rates):
        common: dict[str, Any] = {"task": task, "model": model, "learning_rate": rate, "seed": seed}
        common |= {"protocol": grid.protocol, "fixed": tuple(fixed), "measured": grid.measured}
        methods: list[tuple[str | None, float | None, float]] = [(None, None, 0.0)]  # the baseline
        methods += itertools.product(grid.activations or [], grid.lbe_alphas, [b for b in grid.lbe_betas if b > 0])
        for activations, alpha, beta in methods:
            run = Run(activations=activations, alpha=alpha, beta=beta, **common)
            runs.setdefault(run.name, run)
    return list(runs.values())
