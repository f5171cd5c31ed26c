"""Counts, intervals and tests shared by the reports of the studies."""

import pandas as pd
from scipy import stats

from glue_runs.analysis import comparison

EQUAL = 1e-12
"""Standard errors below it are those of equal values, but for rounding."""


def count(outcome: pd.Series) -> str:
    return f"{int(outcome.sum())} of {len(outcome)}"


def interval(outcome: pd.Series) -> str:
    """Clopper and Pearson's 95% interval of a share."""
    bounds = stats.binomtest(int(outcome.sum()), len(outcome)).proportion_ci(method="exact")
    return f"{bounds.low:.0%} to {bounds.high:.0%}"


def sign_test(ups: int, downs: int) -> float:
    """Exact two-sided p-value."""
    return float(stats.binomtest(ups, ups + downs).pvalue) if ups + downs else 1.0


def mcnemar(left: pd.Series, right: pd.Series) -> float:
    """Exact two-sided p-value of McNemar's test: a sign test of the pairs in which the two, true or false, differ."""
    return sign_test(int((left & ~right).sum()), int((right & ~left).sum()))


def student(values: pd.Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student's two-sided interval, which is the mean alone where all values are equal."""
    mean, error = float(values.mean()), float(stats.sem(values))
    if error < EQUAL:
        return mean, mean, mean
    return mean, *map(float, stats.t.interval(confidence, len(values) - 1, mean, error))


def holm(p_values: pd.Series) -> pd.Series:
    """Holm's correction for the number of p-values, with the same index."""
    return pd.Series(comparison.holm(p_values.tolist()), p_values.index, dtype=float)


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table as Markdown, with its index as the first column."""
    lines = table.fillna("").reset_index().astype(str)
    rows = [lines.columns.tolist(), ["---"] * lines.shape[1], *lines.to_numpy().tolist()]
    print(f"\n## {title}\n", *("| " + " | ".join(row) + " |" for row in rows), sep="\n")
