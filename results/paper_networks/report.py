"""Test scores of the chosen settings, and paired differences to plain training: PROTOCOL.md, 7.

python results/paper_networks/report.py     # tables of what is in runs.csv
"""

from pathlib import Path

import pandas as pd
from scipy import stats

RUNS = Path(__file__).parent / "runs.csv"


def table(lines: pd.DataFrame) -> pd.DataFrame:
    """A row for each contest and method: chosen setting, mean test score, paired difference to "none".

    The differences have Student's 95% interval.
    """
    judged = lines.dropna(subset="test")
    rows = []
    for (contest, method), own in judged.groupby(["contest", "method"], sort=False):
        row = {"contest": contest, "method": method, "learning rate": f"{own['learning_rate'].iloc[0]:g}"}
        row["alpha, beta"] = f"{own['alpha'].iloc[0]:g}, {own['beta'].iloc[0]:g}" if method == "LBE" else ""
        scores = own.set_index("seed")["test"]
        row |= {"seeds": len(scores), "test": f"{scores.mean():.3f}"}
        none = judged[(judged["contest"] == contest) & (judged["method"] == "none")].set_index("seed")["test"]
        differences = (scores - none).dropna()
        if method != "none" and len(differences) > 1:
            mean, sem = differences.mean(), stats.sem(differences)
            low, high = stats.t.interval(0.95, len(differences) - 1, mean, sem) if sem > 0 else (mean, mean)
            row["difference"] = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def main() -> None:
    rows = table(pd.read_csv(RUNS))
    print("| " + " | ".join(rows.columns) + " |\n" + "|---" * len(rows.columns) + "|")
    for row in rows.itertuples(index=False):
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
