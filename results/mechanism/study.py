"""Which part of the penalty makes a deep transformer train: PROTOCOL.md, 3.

    python results/mechanism/study.py --dry_run     # how many runs there are, and how many are missing
    python results/mechanism/study.py               # as many at once as there are cores, one thread each

Trains with `examples/deep_bert.py`; needs the extra `examples`. All raw results are in `runs.csv`.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
from torch import Tensor
from transformers import TrainerCallback

from lbe_hf import LBERegularizer, LBETrainer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runner  # noqa: E402
from training import arguments, by_step, deep_bert, sentences  # noqa: E402

RUNS = HERE / "runs.csv"
SEEDS = range(100, 115)
ALPHA, BETA, FIRST_STEPS = 0.5, 2.0, 100
FLOOR = math.expm1(2 * ALPHA) / (math.pi * math.e)
"""The variance of a unit whose entropy is alpha."""
PAPERS_MODULES = r".*\.layer\.\d+\.output\.dense|.*\.pooler"


class Floor(LBERegularizer):
    """Of mean variances instead of entropies: penalizes those below a floor, a collapsed layer as LBE does."""

    def forward(self, variances: Tensor) -> Tensor:
        return self.beta * (ALPHA * (1 - variances / FLOOR).relu()).square().mean()


def mean_variance(variance: Tensor) -> Tensor:
    """In place of the entropy of each unit."""
    return variance


class OneSided(LBERegularizer):
    """Without the pull downward: entropies above their target are not penalized."""

    def forward(self, entropies: Tensor) -> Tensor:
        return self.beta * (self.target - entropies).relu().square().mean()


class OnlyFirstSteps(TrainerCallback):
    """The penalty ends after the first 100 steps."""

    def __init__(self, trainer: LBETrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == FIRST_STEPS:
            self.trainer.lbe.beta = 0.0


@dataclass(frozen=True)
class Run:
    """A variant of the penalty, at a learning rate of 1e-3, alpha 0.5 and beta 2."""

    seed: int
    variant: str

    @property
    def name(self) -> str:
        return f"{self.variant.replace(' ', '_')}-seed{self.seed}"


ARGUMENTS: dict[str, dict[str, Any]] = {
    "LBE": {},
    "none": {"lbe_beta": 0.0},
    "targets fixed": {"lbe_alpha_learning_rate": 0.0},
    "floor": {},
    "first 100 steps": {},
    "one-sided": {},
    "additive": {"lbe_form": "additive"},
    "feed-forward and pooler": {"lbe_target_modules": PAPERS_MODULES},
}
"""Each variant, by the arguments in which it differs."""

REGULARIZERS = {"floor": Floor, "one-sided": OneSided}


def plan(done: pd.DataFrame) -> Iterator[Run]:
    """All runs, seed by seed, so that all variants have about the same number at any time; last those without LBE.

    The runs of "LBE" are those of the judgement in `results/tuned_rivals`.
    """
    yield from (Run(seed, variant) for seed in SEEDS for variant in ARGUMENTS if variant not in ("LBE", "none"))
    yield from (Run(seed, "none") for seed in SEEDS)


def execute(run: Run) -> pd.DataFrame:
    """Train, and return a row for every 20 steps: accuracy and loss on the batches, entropies in nats.

    With the floor, mean variances stand in the place of the entropies.
    """
    args = arguments(seed=run.seed, **{"lbe_beta": BETA, "lbe_alpha": ALPHA, **ARGUMENTS[run.variant]})
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(None))
        stack.enter_context(patch("lbe_hf.targets.LBERegularizer", REGULARIZERS.get(run.variant, LBERegularizer)))
        if run.variant == "floor":
            stack.enter_context(patch("lbe_hf.entropy.unit_entropies", mean_variance))
        trainer = deep_bert.trainer_for(args, sentences(args), deep_bert.network(args))
        if run.variant == "first 100 steps":
            trainer.add_callback(OnlyFirstSteps(trainer))
        trainer.train()
    columns = ["lbe_loss", "grad_norm", "entropy_min", "entropy_mean", "entropy_last"]
    return by_step(trainer, *columns).assign(**asdict(run))


if __name__ == "__main__":
    runner.main(__doc__, plan, execute, RUNS)
