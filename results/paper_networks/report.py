"""Test scores of the chosen settings, and paired differences to plain training: PROTOCOL.md, 7.

python results/paper_networks/report.py     # tables of what is in runs.csv
"""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from inference import show, student  # noqa: E402


def table(lines: pd.DataFrame) -> pd.DataFrame:
    """A row for each contest and method: chosen setting, mean test score, paired difference to "none".

    The differences have Student's 95% interval.
    """
    judged = lines[lines["seed"] >= 100].fillna({"test": 0.0})  # diverged, as in the choice
    rows = []
    for (contest, method), own in judged.groupby(["contest", "method"], sort=False):
        row = {"contest": contest, "method": method, "learning rate": f"{own['learning_rate'].iloc[0]:g}"}
        row["alpha, beta"] = f"{own['alpha'].iloc[0]:g}, {own['beta'].iloc[0]:g}" if method == "LBE" else ""
        scores = own.set_index("seed")["test"]
        row |= {"seeds": len(scores), "test": f"{scores.mean():.3f}"}
        none = judged[(judged["contest"] == contest) & (judged["method"] == "none")].set_index("seed")["test"]
        differences = (scores - none).dropna()
        if method != "none" and len(differences) > 1:
            mean, low, high = student(differences)
            row["difference"] = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def main() -> None:
    show("Test scores of the chosen settings", table(pd.read_csv(HERE / "runs.csv")).set_index("contest"))


if __name__ == "__main__":
    main()
