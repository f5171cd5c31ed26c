"""Which setting each method is judged at, and how far two methods lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ..finetune.record import SETTING, SETUP

BASELINE = "baseline"
MIN_SEEDS = 3
"""Seeds below which an interval or a p-value says nothing."""

_MAX_EXACT = 12  # seeds; 2**12 signs are still enumerated


def choose_settings(results: pd.DataFrame) -> pd.DataFrame:
    """The runs of the setting that is best on the validation rows, for each setup and method.

    Best is the mean of `validation` over seeds, among the settings with the most seeds done; of equals the one
    that the grid has first. Test scores have no part in it.
    """
    if results.empty:
        return results
    group = [*SETUP, "method"]
    settings = results.groupby([*group, *SETTING], dropna=False, sort=False)["validation"]
    settings = settings.agg(["count", "mean"]).reset_index()
    settings = settings.sort_values(["count", "mean"], ascending=False, kind="stable")
    chosen = settings.drop_duplicates(group)[[*group, *SETTING]]
    return results.merge(chosen, on=[*group, *SETTING])


@dataclass(frozen=True)
class Difference:
    """How a method differs from the baseline over the seeds that both have."""

    seeds: int
    mean: float
    interval: tuple[float, float] | None
    """95% percentile bootstrap interval of the mean; None with fewer than `MIN_SEEDS` seeds."""
    p_value: float | None
    """Two-sided: exact paired permutation test, or Wilcoxon's for more than 12 seeds; None with too few seeds."""


def paired_difference(method: pd.Series, baseline: pd.Series) -> Difference:
    """`method` minus `baseline`, both scores indexed by seed."""
    differences = (method - baseline).dropna().to_numpy(float)
    mean = float(differences.mean()) if len(differences) else float("nan")
    if len(differences) < MIN_SEEDS:
        return Difference(len(differences), mean, None, None)
    bootstrap = stats.bootstrap((differences,), np.mean, method="percentile", rng=np.random.default_rng(0))
    low, high = bootstrap.confidence_interval
    return Difference(len(differences), mean, (float(low), float(high)), _p_value(differences))


def _p_value(differences: np.ndarray) -> float:
    if not differences.any():
        return 1.0
    if len(differences) > _MAX_EXACT:
        return float(stats.wilcoxon(differences).pvalue)
    test = stats.permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    return float(test.pvalue)
