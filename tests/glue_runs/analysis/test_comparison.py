import math
from itertools import product
from operator import mul

import pandas as pd
import pytest
from scipy.stats import wilcoxon

from glue_runs.analysis.comparison import holm, mean_difference


def differences(*values: float) -> pd.Series:
    return pd.Series(values, index=range(len(values)))


def test_exact_permutation_p_value() -> None:
    # Of the 2^5 signs, these, all positive ones, and the opposites of both give a mean as far from zero: 4 of 32.
    difference = mean_difference(differences(-0.01, 0.02, 0.03, 0.04, 0.05))
    assert difference.mean == pytest.approx((-0.01 + 0.02 + 0.03 + 0.04 + 0.05) / 5)
    assert difference.p_value == pytest.approx(4 / 32)
    assert difference.seeds == 5


def test_p_value_beside_all_signs_written_out() -> None:
    values = (0.03, -0.01, 0.05, 0.02, -0.02, 0.04)
    observed = abs(sum(values))
    totals = [abs(sum(map(mul, signs, values))) for signs in product((1, -1), repeat=6)]
    expected = sum(total >= observed - 1e-12 for total in totals) / 64
    assert mean_difference(differences(*values)).p_value == pytest.approx(expected)


def test_equal_means_are_ties_in_spite_of_rounding() -> None:
    # Of 277 examples. 16 of the 32 signs give a sum of 7 or more, or of -7 or less; of differences rounded to 12
    # decimals, two of these sums would be nearer to zero by 1e-12.
    steps = [-6, -3, 1, 2, -1]
    scores = [(150 + step) / 277 - 150 / 277 for step in steps]
    assert mean_difference(differences(*scores)).p_value == pytest.approx(16 / 32)


def test_more_than_twelve_seeds_are_ranked() -> None:
    # Wilcoxon: all of 13 differences positive has the exact two-sided p-value 2 / 2^13.
    values = [0.01 * (index + 1) for index in range(13)]
    assert mean_difference(differences(*values)).p_value == pytest.approx(2 / 2**13)


def test_equal_differences_are_ties_in_spite_of_rounding() -> None:
    # Scores of 20 examples. Without rounding, 0.55 - 0.5 and 0.85 - 0.8 differ by 1e-17 and would get other ranks.
    baseline, lbe = [0.5 + 0.05 * (index % 8) for index in range(14)], []
    steps = [1, 1, -1, 2, 1, 1, -2, 1, 1, -1, 1, 3, 1, 1]  # in examples
    lbe = [(round(20 * score) + step) / 20 for score, step in zip(baseline, steps, strict=True)]
    found = mean_difference(differences(*(one - other for one, other in zip(lbe, baseline, strict=True))))
    assert found.p_value == pytest.approx(wilcoxon(steps).pvalue)


def test_interval_is_that_of_a_table_of_t() -> None:
    # Standard deviation 0.01, and 4.303 and 2.776 for 2 and 4 degrees of freedom, as any table of Student's t has it.
    low, high = mean_difference(differences(0.01, 0.02, 0.03)).interval or (1, 0)
    assert (low, high) == pytest.approx((0.02 - 4.303 * 0.01 / math.sqrt(3), 0.02 + 4.303 * 0.01 / math.sqrt(3)), 1e-3)
    low, high = mean_difference(differences(-0.02, -0.01, 0.0, 0.01, 0.02)).interval or (1, 0)
    margin = 2.776 * math.sqrt(0.001 / 4) / math.sqrt(5)
    assert (low, high) == pytest.approx((-margin, margin), rel=1e-3)


def test_equal_scores() -> None:
    difference = mean_difference(differences(0.0, 0.0, 0.0))
    assert (difference.mean, difference.interval, difference.p_value) == (0.0, None, 1.0)
    difference = mean_difference(differences(0.4 - 0.3, 0.7 - 0.6, 0.8 - 0.7))  # equal but for rounding
    assert (difference.interval, difference.p_value) == (None, 0.25)


def test_two_seeds_say_nothing() -> None:
    difference = mean_difference(differences(0.1, 0.2))
    assert (difference.seeds, difference.interval, difference.p_value) == (2, None, None)
    assert difference.mean == pytest.approx(0.15)
    assert mean_difference(differences()).seeds == 0


def test_a_p_value_that_is_not_a_number_is_no_test() -> None:
    assert holm([math.nan, 0.01, 0.02]) == pytest.approx([None, 0.02, 0.02])


def test_a_score_that_is_not_a_number_is_not_left_out() -> None:
    difference = mean_difference(differences(0.1, math.nan, 0.1, 0.1))
    assert math.isnan(difference.mean)
    assert (difference.seeds, difference.interval, difference.p_value) == (4, None, None)


def test_holm() -> None:
    # Sorted: 4 * 0.01, 3 * 0.02, then 2 * 0.025 and 1 * 0.04, which may not fall below those before them.
    assert holm([0.04, 0.01, None, 0.025, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.5, 0.75]) == [1.0, 1.0]
    assert holm([None]) == [None]
