"""The paper's other networks, at a size for CPUs and with tuned settings on both sides: PROTOCOL.md, 7.

    python results/paper_networks/study.py --dry_run     # how many runs there are, and how many are missing
    python results/paper_networks/study.py               # as many at once as there are cores, one thread each

Every setting is tried with seed 0, and the three best of each method with seed 1: that with the best mean validation
score is chosen, and judged on the test images with seeds 100 to 109. The score is the accuracy; for autoencoders it is
the structural similarity (SSIM). The data are scikit-learn's digits: 1149 for training, 288 for validation, 360 for
the test.

Trains with the examples; needs the extra `examples`. All raw results are in `runs.csv`; the column `test` is empty for
the seeds of the choice.
"""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "examples")]

import autoencoder  # noqa: E402
import plain_networks  # noqa: E402
import resnet  # noqa: E402
import runner  # noqa: E402
from experiment import parse  # noqa: E402
from images import load_images, standardize  # noqa: E402

RUNS = HERE / "runs.csv"
CHOICE, JUDGEMENT = range(2), range(100, 110)
FINALISTS = 3
"""Settings of each method that are tried with the second seed of the choice."""

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
ARGUMENTS = {
    "mlp": "--network mlp --depth 50",
    "cnn": "--network cnn --depth 50",
    "autoencoder": "--paper --width 128",
    "resnet": "--paper --blocks 3 --stem imagenet --per_device_train_batch_size 128 --num_train_epochs 20",
}
"""What differs from the defaults of the example, or from the paper, where it is smaller."""

CONTESTS = {
    **{
        f"{network}-{init}": ("none", "LBE", "batch", "selu")
        for network in ("mlp", "cnn")
        for init in ("default", "he")
    },
    **{f"autoencoder-{depth}": ("none", "LBE") for depth in (1, 5, 10, 25, 50)},
    "resnet": ("none", "LBE"),
}
"""The methods of each network and initialization, or depth: their scores are compared with each other."""

PENALTIES = {
    "mlp": ((0.5, 1.0), (0.1, 0.5)),
    "cnn": ((0.5, 1.0), (0.1, 0.5)),
    "autoencoder": ((1.5, 2.0, 2.5), (0.2, 0.5, 1.0, 1.5)),  # these two are the authors' sweeps
    "resnet": ((0.5, 1.0, 1.5), (0.001, 0.005, 0.01)),
}
"""Values of alpha and of beta, all pairs of which are tried."""


@dataclass(frozen=True)
class Run:
    """Settings of a run. Without the penalty `beta` is 0, and `alpha` has no effect."""

    contest: str
    method: str
    seed: int
    learning_rate: float
    alpha: float = 1.0
    beta: float = 0.0

    @property
    def network(self) -> str:
        return self.contest.partition("-")[0]

    @property
    def name(self) -> str:
        penalty = f"-alpha{self.alpha}-beta{self.beta}" if self.beta else ""
        return f"{self.contest}-{self.method}-lr{self.learning_rate}{penalty}-seed{self.seed}"


def settings(contest: str, method: str, seed: int) -> Iterator[Run]:
    """All settings: learning rates (one, the paper's, except for plain networks); with LBE, also alpha and beta."""
    network = contest.partition("-")[0]
    rates = {"autoencoder": (1e-3,), "resnet": (0.1,)}.get(network, RATES)
    penalties = product(*PENALTIES[network]) if method == "LBE" else [(1.0, 0.0)]
    for rate, (alpha, beta) in product(rates, penalties):
        yield Run(contest, method, seed, rate, alpha, beta)


def plan(done: pd.DataFrame) -> Iterator[Run]:
    """The runs of the choice, and those of the judgement that are known to be needed, given the results so far."""
    yield from choice(done)
    yield from judgement(done)


def choice(lines: pd.DataFrame) -> Iterator[Run]:
    """Every setting with the first seed; the best of each method with the second one."""
    for contest, methods in CONTESTS.items():
        for method in methods:
            yield from settings(contest, method, CHOICE[0])
    for contest, methods in CONTESTS.items():
        for method in methods:
            yield from with_seed(best(lines, list(settings(contest, method, CHOICE[0]))), CHOICE[1])


def judgement(lines: pd.DataFrame) -> Iterator[Run]:
    """The chosen settings with fresh seeds, for contests in which all runs of the choice are done."""
    for contest, methods in CONTESTS.items():
        winners = [winner for method in methods for winner in chosen(lines, contest, method)]
        if len(winners) == len(methods):
            for seed in JUDGEMENT:
                yield from with_seed(winners, seed)


def chosen(lines: pd.DataFrame, contest: str, method: str) -> list[Run]:
    """The setting with the best mean validation score over both seeds; none while a run of the choice is missing."""
    first = best(lines, list(settings(contest, method, CHOICE[0])))
    second = list(with_seed(first, CHOICE[1]))
    scores = validation(lines)
    if not first or not all(run.name in scores for run in second):
        return []
    means = {one: scores[one.name] + scores[other.name] for one, other in zip(first, second, strict=True)}
    return [max(means, key=lambda run: means[run])]


def best(lines: pd.DataFrame, runs: list[Run]) -> list[Run]:
    """The `FINALISTS` runs with the highest validation scores, in order, or none while one is missing."""
    scores = validation(lines)
    if not all(run.name in scores for run in runs):
        return []
    return sorted(runs, key=lambda run: scores[run.name], reverse=True)[:FINALISTS]


def validation(lines: pd.DataFrame) -> dict[str, float]:
    """Scores on the validation images by run; 0 for one that diverged."""
    return lines.set_index("run")["validation"].fillna(0).to_dict() if len(lines) else {}


def with_seed(runs: list[Run], seed: int) -> Iterator[Run]:
    yield from (replace(run, seed=seed) for run in runs)


def execute(run: Run) -> pd.DataFrame:
    """Train, and return one row with the scores on the validation images and, after the choice, on the test images."""
    common = f"--data digits --seed {run.seed} --learning_rate {run.learning_rate} --lbe_alpha {run.alpha}"
    common += f" --lbe_beta {run.beta} --use_cpu --disable_tqdm true --log_level error"
    argv = [*ARGUMENTS[run.network].split(), *common.split(), "--output_dir", "runs/paper_networks"]
    example = {"autoencoder": autoencoder, "resnet": resnet}.get(run.network, plain_networks)
    kind = run.contest.partition("-")[2]
    if run.network == "resnet":  # its targets start above their floor
        argv += ["--lbe_alpha_min", str(run.alpha), "--lbe_alpha", str(round(run.alpha + 0.2, 4))]
    args = parse(example.Arguments, example.defaults, argv)
    splits = load_images(args)
    with redirect_stdout(None):
        if run.network == "autoencoder":
            scores, _ = autoencoder.train(args, int(kind), splits)
            validation, test = scores["validation_ssim"], scores["test_ssim"]
        elif run.network == "resnet":
            scores, _ = resnet.train(args, standardize(splits).map_images(resnet.at_least_32))
            validation, test = scores["validation"], scores["test"]
        else:
            normalization = run.method if run.method in plain_networks.NORMALIZATIONS else "none"
            method = plain_networks.Method(kind, normalization, run.beta)
            scores, _ = plain_networks.train(args, method, standardize(splits))
            validation, test = scores["validation"], scores["test"]
    test = None if run.seed in CHOICE else round(test, 5)
    return pd.DataFrame([{**asdict(run), "validation": round(validation, 5), "test": test}])


if __name__ == "__main__":
    runner.main(__doc__, plan, execute, RUNS)
