"""Deep transformers from random weights, with and without LBE, by depth, learning rate, alpha and beta.

    python results/deep_bert/study.py --dry_run     # how many runs there are, and how many are missing
    python results/deep_bert/study.py               # as many at once as there are cores, one thread each
    python results/deep_bert/report.py              # tables and figures of what is done

Trains with `examples/deep_bert.py`; needs the extra `examples`. All raw results are in `runs.csv`.
"""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import runner  # noqa: E402
from training import arguments, by_step, deep_bert, sentences, train_on_digits  # noqa: E402

RUNS = HERE / "runs.csv"
FEED_FORWARD = r".*\.layer\.\d+\.output\.dense"
WARMUP = 40  # a tenth of the steps


@dataclass(frozen=True)
class Run:
    """Settings of a run. Without the penalty, `beta` is 0, and `alpha` and `activations` have no effect."""

    seed: int
    depth: int = 48
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "none"  # or "linear", to zero
    beta: float = 0.0
    alpha: float = 0.7
    activations: str = "hidden_states"
    data: str = "sentences"
    model_type: str = "bert"

    @property
    def name(self) -> str:
        penalty = f"beta{self.beta}-alpha{self.alpha}-{self.activations}" if self.beta else "none"
        schedule = f"lr{self.learning_rate}-warmup{self.warmup_steps}"
        schedule += "-linear" if self.decay == "linear" else ""
        network = self.data if self.model_type == "bert" else f"{self.data}-{self.model_type}"
        return f"{network}-depth{self.depth}-{schedule}-{penalty}-seed{self.seed}"


def runs() -> Iterator[Run]:
    """All runs, the most informative first; runs to be compared are adjacent, seed by seed."""
    for seed, warmup_steps, beta in product(range(20), (0, WARMUP), (0.0, 0.5)):
        yield Run(seed, warmup_steps=warmup_steps, beta=beta)
    for seed, beta in product(range(10), (0.0, 0.5)):
        yield Run(seed, decay="linear", beta=beta)
    for seed in range(5):
        for depth, learning_rate, beta in product((12, 24, 48, 96), (3e-4, 1e-3, 2e-3), (0.0, 0.5)):
            yield Run(seed, depth, learning_rate, beta=beta)
        for alpha, beta in product((0.3, 0.5, 0.7, 1.0), (0.05, 0.2, 0.5, 2.0)):
            yield Run(seed, beta=beta, alpha=alpha)
        yield Run(seed, beta=0.5, activations="feed_forward")
        for beta in (0.0, 0.5):
            yield Run(seed, beta=beta, data="digits")
            yield Run(seed, beta=beta, model_type="roberta-prelayernorm")
    for seed in range(20):
        yield Run(seed, beta=2.0, alpha=0.5)  # chosen on seeds 0 and 1, then on 2 to 4
    for seed in range(5):
        yield Run(seed, learning_rate=2e-3, beta=2.0, alpha=0.5)


def execute(run: Run) -> pd.DataFrame:
    """Train, and return a row for every 20 steps: accuracy and loss on the batches, entropies in nats."""
    args = arguments(
        model_type=run.model_type,
        depth=run.depth,
        learning_rate=run.learning_rate,
        warmup_steps=run.warmup_steps,
        lr_scheduler_type="linear" if run.decay == "linear" else "constant_with_warmup",
        lbe_beta=run.beta,
        lbe_alpha=run.alpha,
        lbe_target_modules=FEED_FORWARD if run.activations == "feed_forward" else None,
        seed=run.seed,
    )
    with redirect_stdout(None):
        if run.data == "digits":
            test_accuracy, trainer = train_on_digits(args)
        else:
            trainer = deep_bert.train(args, sentences(args), deep_bert.network(args))
            test_accuracy = None  # no example is seen twice
    history = trainer.state.log_history
    entropies = [name for name in history[0] if name.startswith("entropy/")]
    lines = by_step(trainer, "grad_norm", *entropies)
    seconds = next(line["train_runtime"] for line in history if "train_runtime" in line) / args.max_steps
    return lines.assign(**asdict(run), test_accuracy=test_accuracy, seconds_per_step=round(seconds, 4))


if __name__ == "__main__":
    runner.main(__doc__, lambda done: runs(), execute, RUNS)
