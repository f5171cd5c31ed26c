"""A deep transformer with and without LBE, both tuned, and with other initializations: PROTOCOL.md, 1 and 2.

    python results/tuned_rivals/study.py --dry_run     # how many runs there are, and how many are missing
    python results/tuned_rivals/study.py               # as many at once as there are cores, one thread each

Trains with `examples/deep_bert.py`; needs the extra `examples`. All raw results are in `runs.csv`.
"""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import choice  # noqa: E402
import runner  # noqa: E402
from training import arguments, by_step, deep_bert, sentences  # noqa: E402

RUNS = HERE / "runs.csv"
LEARNING_RATES = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)
DEPTH = 48


@dataclass(frozen=True)
class Run:
    """Settings of a run. Without the penalty `beta` is 0, and `alpha` has no effect."""

    seed: int
    learning_rate: float
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    alpha: float = 0.5
    beta: float = 0.0
    initialization: str = "default"
    """"default" (Transformers'), "gpt2", "deepnorm", or "prelayernorm", which is another network."""

    @property
    def name(self) -> str:
        penalty = f"alpha{self.alpha}-beta{self.beta}" if self.beta else "none"
        schedule = f"lr{self.learning_rate}-warmup{self.warmup_steps}-clip{self.max_grad_norm}"
        return f"{self.initialization}-{schedule}-{penalty}-seed{self.seed}"


def plan(done: pd.DataFrame) -> Iterator[Run]:
    """All runs that are known to be needed, given the results so far.

    First seeds 0 to 2 of all cells and seed 0 of the other settings; then one further seed at a time of each setting
    that can still be chosen; then the fresh seeds of the chosen ones.
    """
    first = [*(run for seed in choice.FIRST_SEEDS for run in cells(seed)), *other_settings(seed=0)]
    yield from first
    if done.empty or not {run.name for run in first} <= set(done["run"]):
        return
    runs = choice.rivals(done)
    undecided = [Run(seed, **setting) for setting, seed in choice.undecided(runs)]
    yield from undecided
    if not undecided:
        for seed in choice.FRESH_SEEDS:
            yield from (Run(seed, **setting) for _, setting in choice.chosen(runs)[choice.SETTING].iterrows())


def cells(seed: int) -> Iterator[Run]:
    """The 30 cells of learning rate, warm-up and clipping, with and without LBE."""
    for rate, warmup_steps, max_grad_norm, beta in product(LEARNING_RATES, (0, 40, 100), (1.0, 0.1), (0.0, 2.0)):
        yield Run(seed, rate, warmup_steps, max_grad_norm, beta=beta)


def other_settings(seed: int) -> Iterator[Run]:
    """The other initializations, and LBE's 30 settings, five of which are also cells."""
    for rate in LEARNING_RATES:
        for initialization in ("gpt2", "deepnorm", "prelayernorm"):
            yield Run(seed, rate, initialization=initialization)
        for alpha, beta in product((0.3, 0.5, 0.7), (0.5, 2.0)):
            yield Run(seed, rate, alpha=alpha, beta=beta)


def execute(run: Run) -> pd.DataFrame:
    """Train, and return a row for every 20 steps: accuracy and loss on the batches, entropies in nats."""
    args = arguments(
        model_type="roberta-prelayernorm" if run.initialization == "prelayernorm" else "bert",
        depth=DEPTH,
        learning_rate=run.learning_rate,
        warmup_steps=run.warmup_steps,
        max_grad_norm=run.max_grad_norm,
        lr_scheduler_type="constant_with_warmup",
        lbe_beta=run.beta,
        lbe_alpha=run.alpha,
        seed=run.seed,
    )
    model = deep_bert.network(args)
    if run.initialization in ("gpt2", "deepnorm"):
        initialize(model, run.initialization)
    with redirect_stdout(None):
        trainer = deep_bert.train(args, sentences(args), model)
    return by_step(trainer, "grad_norm", "entropy_min", "entropy_mean", "entropy_last").assign(**asdict(run))


@torch.no_grad()
def initialize(model: nn.Module, kind: str) -> None:
    """Scale the weights of a BERT that was initialized as Transformers does.

    "gpt2": the projections into the residual stream are divided by sqrt(2 * depth) (Radford et al., 2019, 2.3).
    "deepnorm": Xavier's initialization, with the gain (8 * depth)^(-1/4) for values, output projection and
    feed-forward (Wang et al., arXiv 2203.00555, figure 2); the residual stream itself is not scaled up.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or ".layer." not in name:
            continue
        queries_or_keys = name.endswith((".query", ".key"))
        if kind == "gpt2" and name.endswith(".output.dense"):
            module.weight /= (2 * DEPTH) ** 0.5
        if kind == "deepnorm":
            nn.init.xavier_normal_(module.weight, gain=1.0 if queries_or_keys else (8 * DEPTH) ** -0.25)


if __name__ == "__main__":
    runner.main(__doc__, plan, execute, RUNS)
