"""How far two methods lie apart: the mean difference over seeds, its interval, and p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

MIN_SEEDS = 3
"""Seeds below which an interval or a p-value says nothing."""

_MAX_EXACT = 12  # seeds; 2**12 signs are still enumerated


@dataclass(frozen=True)
class Difference:
    """How a method differs from the baseline over the seeds that both have."""

    seeds: int
    mean: float
    """NaN without seeds, or if a score is NaN."""
    interval: tuple[float, float] | None
    """Student's t interval of the mean at 95%; None with fewer than `MIN_SEEDS` seeds, or if a score is NaN."""
    p_value: float | None
    """Two-sided: exact paired permutation test, or Wilcoxon's for more than 12 seeds; None as for `interval`."""


def mean_difference(differences: pd.Series) -> Difference:
    """The differences of the seeds, one value a seed, as their mean with what is known about it."""
    values = differences.to_numpy(float)
    count, mean = len(values), float(values.mean()) if len(values) else math.nan
    if count < MIN_SEEDS or math.isnan(mean):
        return Difference(count, mean, None, None)
    margin = float(stats.t.ppf(0.975, count - 1) * stats.sem(values))
    return Difference(count, mean, (mean - margin, mean + margin), _p_value(values))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values corrected for their number (Holm, 1979), in the same order; None, where there was no test, stays.

    Rejecting what is below 0.05 then gives a single false difference among all of them in at most 5% of reports.
    """
    tested = sorted((p_value, index) for index, p_value in enumerate(p_values) if p_value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p_value, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p_value))
        corrected[index] = highest
    return corrected


def _p_value(differences: NDArray[np.float64]) -> float:
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
