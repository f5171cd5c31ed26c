"""Tables (Markdown, printed) of the runs that `study.py` has finished: PROTOCOL.md, 3.

    python results/mechanism/report.py

A run has trained if its accuracy over the last 100 steps is above 0.95.
"""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from inference import count, holm, interval, mcnemar, show  # noqa: E402
from outcomes import TUNED_RIVALS, median_in_words, outcomes, with_lbe  # noqa: E402

REFERENCES = ["LBE", "none"]


def variants(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each variant: how many runs trained, when, and McNemar's test against LBE.

    Holm's correction is over the variants of the penalty; training without it leaves out no part.
    """
    trained = runs.pivot(index="seed", columns="variant", values="trained")
    tests = {}
    for part in trained.columns.difference(REFERENCES):
        pairs = trained[["LBE", part]].dropna().astype(bool)
        tests[part] = mcnemar(pairs["LBE"], pairs[part])
    p_values = pd.DataFrame({"p": tests, "holm": holm(pd.Series(tests, dtype=float))})
    table = {}
    for variant, own in runs.groupby("variant", sort=False):
        table[variant] = {
            "trained": f"{count(own['trained'])} ({interval(own['trained'])})",
            "median of the steps to 0.95": median_in_words(own["step"]),
        }
        if variant in tests:
            p, corrected = p_values.loc[variant]
            table[variant]["p (with Holm's correction)"] = f"{p:.2g} ({corrected:.2g})"
    return pd.DataFrame(table).T.rename_axis("variant")


def main() -> None:
    lbe = with_lbe(pd.read_csv(TUNED_RIVALS)).assign(variant="LBE")
    runs = outcomes(pd.concat([lbe, pd.read_csv(HERE / "runs.csv")]), ["variant", "seed"])
    print(f"{len(runs)} runs")
    show("Trained by variant (95% intervals)", variants(runs))


if __name__ == "__main__":
    main()
