"""Table (Markdown, printed) of the runs that `study.py` has finished: PROTOCOL.md, 4.

python results/second_task/report.py
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from inference import show, student  # noqa: E402

MEASURES = {"digits": "accuracy on the test images", "characters": "perplexity by character on held-out text"}


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each task: means without LBE and with it, and the paired difference with Student's 95% interval.

    Where a run diverged, so that its score is not finite, there is no interval, and nothing is claimed.
    """
    rows = {}
    for task, own in runs.groupby("task", sort=False):
        scores = own.pivot(index="seed", columns="beta", values="score")
        none, lbe = scores[0.0], scores[2.0]
        rows[f"{task}: {MEASURES[task]}"] = {
            "seeds": len(scores),
            "without LBE": f"{none.mean():.3f} ({none.min():.3f} to {none.max():.3f})",
            "LBE": f"{lbe.mean():.3f} ({lbe.min():.3f} to {lbe.max():.3f})",
            "difference": in_words(lbe - none),
        }
    return pd.DataFrame(rows).T.rename_axis("task")


def in_words(differences: pd.Series) -> str:
    finite = np.isfinite(differences)
    if not finite.all():
        return f"none: in {(~finite).sum()} of {len(differences)} pairs a run diverged"
    mean, low, high = student(differences)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    runs = pd.read_csv(HERE / "runs.csv")
    print(f"{len(runs)} runs")
    show("Without LBE and with it (in brackets: range, interval)", table(runs))


if __name__ == "__main__":
    main()
