"""Tables (Markdown, printed) of the runs that `study.py` has finished: PROTOCOL.md, 5.

    python results/default_beta/report.py

Of the deep transformer a run has trained if its accuracy over the last 100 steps is above 0.95. Scores on CoLA and
MRPC are those of the official validation sets, in points.
"""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from inference import count, interval, show, student  # noqa: E402
from outcomes import TUNED_RIVALS, has_trained, outcomes, with_lbe  # noqa: E402

TASKS = ("cola", "mrpc")
RESCUED, HARM = 12, -1.0
"""At least so many runs train, and the bound of the difference, in points, is above this."""


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each beta: runs of the deep transformer that trained, and the differences to beta 0 on the tasks.

    A difference has its one-sided 95% bound below, from Student's t. It was not run where the first count is too low.
    """
    rows = {}
    for beta in sorted(runs.loc[runs["beta"] > 0, "beta"].unique()):
        trained = rescued(runs, beta)
        rows[beta] = {"trained": f"{count(trained)} ({interval(trained)})"}
        for task in TASKS:
            rows[beta][f"{task}: difference (bound)"] = in_words(harm(runs, task, beta))
        rows[beta]["does both"] = "yes" if does_both(runs, beta) else "no"
    return pd.DataFrame(rows).T.rename_axis("beta")


def in_words(differences: pd.Series) -> str:
    if differences.empty:
        return "not run"
    mean, low, _ = student(differences, confidence=0.9)
    return f"{mean:+.2f} ({low:+.2f})"


def does_both(runs: pd.DataFrame, beta: float) -> bool:
    """Whether this beta rescues the deep transformer and does no harm on either task."""
    bounds = (student(harm(runs, task, beta), confidence=0.9)[1] for task in TASKS)
    return bool(rescued(runs, beta).sum() >= RESCUED) and all(bound > HARM for bound in bounds)


def rescued(runs: pd.DataFrame, beta: float) -> pd.Series:
    """Whether each run of the deep transformer trained."""
    return has_trained(runs[(runs["task"] == "rescue") & (runs["beta"] == beta)]["score"])


def harm(runs: pd.DataFrame, task: str, beta: float) -> pd.Series:
    """Differences of the scores to those without LBE in points, by seed."""
    by_beta = runs[runs["task"] == task].pivot(index="seed", columns="beta", values="score")
    return 100 * (by_beta[beta] - by_beta[0.0]).dropna() if beta in by_beta else pd.Series(dtype=float)


def at_beta_2(lines: pd.DataFrame) -> pd.DataFrame:
    """The runs of the deep transformer at beta 2, from the lines of `results/tuned_rivals`."""
    runs = outcomes(with_lbe(lines), ["seed"]).rename(columns={"accuracy": "score"})
    return runs[["run", "seed", "score"]].assign(task="rescue", beta=2.0)


def main() -> None:
    runs = pd.concat([pd.read_csv(HERE / "runs.csv"), at_beta_2(pd.read_csv(TUNED_RIVALS))])
    print(f"{len(runs)} runs, fine-tuning with {runs.loc[runs['task'] != 'rescue', 'seed'].nunique()} seeds")
    show("Does it rescue a deep transformer, and do no harm in fine-tuning?", table(runs))


if __name__ == "__main__":
    main()
