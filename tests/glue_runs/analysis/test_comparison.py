from itertools import product
from operator import mul
from pathlib import Path

import pandas as pd
import pytest
from grids import made_up, made_up_grid

from glue_runs.analysis.comparison import choose_settings, paired_difference
from glue_runs.analysis.table import read_results


def scores(*values: float) -> pd.Series:
    return pd.Series(values, index=range(len(values)))


def test_settings_are_chosen_by_validation_even_where_test_says_otherwise(tmp_path: Path) -> None:
    records = [made_up(0.6, 0.2, seed) for seed in (1, 2)]
    records += [made_up(0.5, 0.9, seed, learning_rate=3e-5) for seed in (1, 2)]
    records += [made_up(0.4, 0.8, seed, beta=0.01) for seed in (1, 2)]
    records += [made_up(0.5, 0.1, seed, beta=0.05) for seed in (1, 2)]
    chosen = choose_settings(read_results(made_up_grid(tmp_path, records)))
    assert chosen[["method", "learning_rate", "beta", "test"]].drop_duplicates().values.tolist() == [
        ["baseline", 1e-5, 0.0, 0.2],
        ["LBE on hidden_states", 1e-5, 0.05, 0.1],
    ]


def test_a_lucky_setting_with_fewer_seeds_is_not_chosen(tmp_path: Path) -> None:
    records = [made_up(0.5, 0.5, seed) for seed in (1, 2)] + [made_up(0.9, 0.9, 1, learning_rate=3e-5)]
    chosen = choose_settings(read_results(made_up_grid(tmp_path, records)))
    assert set(chosen["learning_rate"]) == {1e-5}


def test_exact_permutation_p_value() -> None:
    # The differences are -0.01, 0.02, 0.03, 0.04 and 0.05. Of their 2^5 signs, these, all positive ones, and the
    # opposites of both give a mean as far from zero: 4 of 32.
    difference = paired_difference(scores(0.50, 0.62, 0.73, 0.64, 0.55), scores(0.51, 0.6, 0.7, 0.6, 0.5))
    assert difference.mean == pytest.approx((-0.01 + 0.02 + 0.03 + 0.04 + 0.05) / 5)
    assert difference.p_value == pytest.approx(4 / 32)
    assert difference.seeds == 5


def test_p_value_beside_all_signs_written_out() -> None:
    values = (0.03, -0.01, 0.05, 0.02, -0.02, 0.04)
    observed = abs(sum(values))
    totals = [abs(sum(map(mul, signs, values))) for signs in product((1, -1), repeat=6)]
    expected = sum(total >= observed - 1e-12 for total in totals) / 64
    assert paired_difference(scores(*values), scores(*[0.0] * 6)).p_value == pytest.approx(expected)


def test_more_than_twelve_seeds_are_ranked() -> None:
    # Wilcoxon: all of 13 differences positive has the exact two-sided p-value 2 / 2^13.
    values = [0.01 * (index + 1) for index in range(13)]
    assert paired_difference(scores(*values), scores(*[0.0] * 13)).p_value == pytest.approx(2 / 2**13)


def test_interval_covers_the_mean_and_repeats() -> None:
    method, baseline = scores(0.6, 0.7, 0.65, 0.5), scores(0.5, 0.5, 0.6, 0.55)
    low, high = paired_difference(method, baseline).interval or (1, 0)
    assert -0.05 <= low < 0.0875 < high <= 0.2  # within the range of the differences, around their mean
    assert paired_difference(method, baseline).interval == (low, high)


def test_equal_scores() -> None:
    difference = paired_difference(scores(0.5, 0.6, 0.7), scores(0.5, 0.6, 0.7))
    assert (difference.mean, difference.interval, difference.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_only_common_seeds_count_and_two_say_nothing() -> None:
    difference = paired_difference(pd.Series({1: 0.5, 2: 0.7, 3: 0.9}), pd.Series({2: 0.6, 3: 0.7, 4: 0.1}))
    assert difference.seeds == 2
    assert difference.mean == pytest.approx(0.15)
    assert (difference.interval, difference.p_value) == (None, None)
