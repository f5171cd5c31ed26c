"""The paper's other networks, at a size for CPUs and with tuned settings on both sides: PROTOCOL.md, 7.

    python results/paper_networks/study.py --dry_run     # how many runs there are, and how many are missing
    python results/paper_networks/study.py               # as many at once as there are cores, one thread each

Settings are chosen by the mean validation score of seeds 0 and 1. When all these runs are done, the chosen settings
are judged on the test images with seeds 100 to 109. The score is the accuracy; for autoencoders it is the structural
similarity (SSIM). The data are scikit-learn's digits: 1149 for training, 288 for validation, 360 for the test.

Trains with the examples; needs the extra `examples`. All raw results are in `runs.csv`; the column `test` is empty for
the seeds of the choice.
"""

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
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


def choice() -> Iterator[Run]:
    for seed, (contest, methods) in product(CHOICE, CONTESTS.items()):
        for method in methods:
            yield from settings(contest, method, seed)


def plan(done: pd.DataFrame) -> Iterator[Run]:
    """The runs of the choice, and those of the judgement that are known to be needed, given the results so far."""
    yield from choice()
    yield from judgement(done)


def judgement(lines: pd.DataFrame) -> Iterator[Run]:
    """The chosen settings with fresh seeds, for contests in which all runs of the choice are done."""
    done = set(lines["run"])
    for seed, (contest, methods) in product(JUDGEMENT, CONTESTS.items()):
        tried = [[list(settings(contest, method, own)) for own in CHOICE] for method in methods]
        if all(run.name in done for by_seed in tried for same in by_seed for run in same):
            for by_seed in tried:
                yield chosen(lines, by_seed, seed)


def chosen(lines: pd.DataFrame, by_seed: list[list[Run]], seed: int) -> Run:
    """The setting with the best mean validation score (the first of equal ones), with this seed.

    Args:
        by_seed: the same settings in the same order for each seed of the choice.
    """
    scores = lines.set_index("run")["validation"].fillna(0)  # a run that diverged has no score
    means = [sum(scores[run.name] for run in same) / len(same) for same in zip(*by_seed, strict=True)]
    best = by_seed[0][means.index(max(means))]
    return Run(**{**asdict(best), "seed": seed})


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
