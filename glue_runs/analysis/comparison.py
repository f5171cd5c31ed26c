"""The difference between two methods: its mean over seeds, a confidence interval, and p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

MIN_SEEDS = 3
"""With fewer seeds there is no interval and no p-value."""

_MAX_EXACT = 12  # seeds; 2**12 signs are still enumerated
DECIMALS = 12
"""Of scores, which are at most 1: beyond them, equal values differ by rounding."""


@dataclass(frozen=True)
class Difference:
    """The difference between a method and the baseline, over the seeds that both have."""

    seeds: int
    mean: float
    """NaN without seeds, or if a score is NaN."""
    interval: tuple[float, float] | None
    """Student's t interval of the mean at 95%; None without a p-value, or if all differences are equal."""
    p_value: float | None
    """Two-sided: exact paired permutation test, or Wilcoxon's for more than 12 seeds.

    None with fewer than `MIN_SEEDS` seeds, or if a score is NaN.
    """


def mean_difference(differences: pd.Series) -> Difference:
    """Mean, interval and p-value of the differences, which have one value per seed."""
    values = differences.to_numpy(float)
    count, mean = len(values), float(values.mean()) if len(values) else math.nan
    if count < MIN_SEEDS or math.isnan(mean):
        return Difference(count, mean, None, None)
    margin = float(stats.t.ppf(0.975, count - 1) * stats.sem(values))
    interval = (mean - margin, mean + margin) if margin > 10**-DECIMALS else None
    return Difference(count, mean, interval, _p_value(values))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values corrected for their number (Holm, 1979), in the same order; None where there was no test, or
    its p-value is NaN.

    If each corrected value below 0.05 is taken for a difference, then at most 5% of reports contain any false
    difference.
    """
    known = [(p_value, index) for index, p_value in enumerate(p_values) if p_value is not None]
    tested = sorted((p_value, index) for p_value, index in known if not math.isnan(p_value))
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p_value, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p_value))
        corrected[index] = highest
    return corrected


def _p_value(differences: NDArray[np.float64]) -> float:
    rounded = differences.round(DECIMALS)  # so that equal differences are ties
    if not rounded.any():
        return 1.0
    if len(differences) > _MAX_EXACT:
        return float(stats.wilcoxon(rounded).pvalue)
    # Of a single sample, this type of permutation changes the signs.
    test = stats.permutation_test((differences,), _rounded_mean, permutation_type="samples", n_resamples=np.inf)
    return float(test.pvalue)


def _rounded_mean(differences: NDArray[np.float64], axis: int = -1) -> Any:
    """Rounded so that equal means are ties; of rounded differences they would not be."""
    return np.mean(differences, axis=axis).round(DECIMALS)
