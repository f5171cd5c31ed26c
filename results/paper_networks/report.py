"""Test scores of the chosen settings, and LBE's paired differences to its rivals: PROTOCOL.md, 7.

python results/paper_networks/report.py     # the table of what is in runs.csv
"""

import sys
from pathlib import Path

import pandas as pd
from scipy import stats

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from inference import holm, show, student  # noqa: E402


def table(lines: pd.DataFrame) -> pd.DataFrame:
    """A row for each contest and method: chosen setting, mean and range of the test score, LBE's difference to it.

    The differences are paired by seed and have Student's 95% interval, and the p-value of Student's test with Holm's
    correction over all of them. A run that diverged scores 0, as in the choice.
    """
    judged = lines[lines["seed"] >= 100].fillna({"test": 0.0})
    rows = []
    for (contest, method), own in judged.groupby(["contest", "method"], sort=False):
        scores = own.set_index("seed")["test"]
        row = {"contest": contest, "method": method, "learning rate": f"{own['learning_rate'].iloc[0]:g}"}
        row["alpha, beta"] = f"{own['alpha'].iloc[0]:g}, {own['beta'].iloc[0]:g}" if method == "LBE" else ""
        row["seeds"] = len(scores)
        row["test (range)"] = f"{scores.mean():.3f} ({scores.min():.3f} to {scores.max():.3f})"
        lbe = judged[(judged["contest"] == contest) & (judged["method"] == "LBE")].set_index("seed")["test"]
        differences = (lbe - scores).dropna()
        if method != "LBE" and len(differences) > 1:
            mean, low, high = student(differences)
            row["LBE minus it"] = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
            row["p"] = stats.ttest_1samp(differences, 0).pvalue
        rows.append(row)
    contests = pd.DataFrame(rows)
    p, corrected = contests["p"], holm(contests["p"].dropna())
    contests["p (corrected)"] = [f"{p[row]:.2g} ({corrected[row]:.2g})" if row in corrected else "" for row in p.index]
    return contests.drop(columns="p").fillna("")


def main() -> None:
    show("Test scores of the chosen settings", table(pd.read_csv(HERE / "runs.csv")).set_index("contest"))


if __name__ == "__main__":
    main()
