import math
from typing import Any

import pytest
from grids import made_up

from glue_runs.analysis.contests import Contest, find_contests
from glue_runs.analysis.table import tabulate

LOW, HIGH = 1e-5, 3e-5


def contests(records: list[dict[str, Any]]) -> dict[str, Contest]:
    found = list(
        find_contests(tabulate({str(index): {"diverged": False, **record} for index, record in enumerate(records)}))
    )
    by_name = {contest.name: contest for contest in found}
    assert len(by_name) == len(found)
    return by_name


def grid(tests: dict[tuple[float, int], tuple[float, float]], beta: float = 0.05) -> list[dict[str, Any]]:
    """Runs by learning rate and seed with the test scores of the baseline and of LBE.

    Validation gives the baseline the low rate and LBE the high one.
    """
    records = []
    for (rate, seed), (baseline, lbe) in tests.items():
        records.append(made_up(0.5 if rate == LOW else 0.4, baseline, seed, learning_rate=rate))
        records.append(made_up(0.5 if rate == HIGH else 0.4, lbe, seed, learning_rate=rate, beta=beta))
    return records


def test_ahead_at_its_own_rate_behind_at_the_same_ones() -> None:
    found = contests(grid({(LOW, 1): (0.5, 0.4), (LOW, 2): (0.5, 0.3), (HIGH, 1): (0.7, 0.6), (HIGH, 2): (0.8, 0.7)}))
    assert list(found) == ["one setting", "one setting, same learning rates"]
    # LBE at the high rate, 0.6 and 0.7, and the baseline at the low one, 0.5 twice.
    assert found["one setting"].differences("test").to_dict() == pytest.approx({1: 0.1, 2: 0.2})
    # A value a seed: the means of -0.1 and -0.1, and of -0.2 and -0.1.
    same = found["one setting, same learning rates"].differences("test")
    assert same.to_dict() == pytest.approx({1: -0.1, 2: -0.15})


def test_only_seeds_that_both_have_at_every_rate_count() -> None:
    tests = {(rate, seed): (0.5, 0.5 + 0.1 * seed) for rate in (LOW, HIGH) for seed in (1, 2)}
    records = grid({**tests, (LOW, 3): (0.5, 0.9)})
    records.append(made_up(0.4, 0.9, 4, learning_rate=HIGH))  # the baseline alone
    same = contests(records)["one setting, same learning rates"]
    assert same.differences("test").to_dict() == pytest.approx({1: 0.1, 2: 0.2})


def test_a_seed_at_another_rate_costs_no_contest() -> None:
    tests = {(rate, seed): (0.5, 0.6) for rate in (LOW, HIGH) for seed in (1, 2, 3)}
    same = contests(grid({**tests, (5e-5, 4): (0.5, 0.9)}))["one setting, same learning rates"]
    assert same.differences("test").to_dict() == pytest.approx({1: 0.1, 2: 0.1, 3: 0.1})
    assert (len(same.pairs), same.left_out) == (6, 1)
    apart = contests(grid({(LOW, 1): (0.5, 0.6), (LOW, 2): (0.5, 0.6), (HIGH, 3): (0.5, 0.9)}))
    assert apart["one setting, same learning rates"].differences("test").to_dict() == pytest.approx({1: 0.1, 2: 0.1})


def test_alpha_and_beta_are_those_of_the_contest() -> None:
    chosen = {(rate, seed): (0.5, 0.6) for rate in (LOW, HIGH) for seed in (1, 2)}
    records = grid(chosen)
    for rate in (LOW, HIGH):
        records += [made_up(0.1, 0.8, seed, learning_rate=rate, beta=0.01) for seed in (1, 2)]
    found = contests(records)
    assert list(found) == [
        *("best of 2 settings", "best of 2 settings, same learning rates"),
        *("fixed in advance", "fixed in advance, same learning rates"),
    ]
    differences = {name: contest.differences("test").tolist() for name, contest in found.items()}
    assert differences["best of 2 settings, same learning rates"] == pytest.approx([0.1, 0.1])
    assert differences["fixed in advance, same learning rates"] == pytest.approx([0.3, 0.3])


def test_a_single_rate_is_one_contest() -> None:
    assert list(contests(grid({(LOW, 1): (0.5, 0.6)}))) == ["one setting"]


def test_a_score_that_is_not_a_number_stays() -> None:
    found = contests(
        grid({(rate, seed): (math.nan if seed == 1 else 0.5, 0.6) for rate in (LOW, HIGH) for seed in (1, 2)})
    )
    for contest in found.values():
        first, second = contest.differences("test")
        assert math.isnan(first)
        assert second == pytest.approx(0.1)


def test_without_a_baseline() -> None:
    found = contests([made_up(0.5, 0.6, 1, beta=0.05)])
    assert found["one setting"].differences("test").empty
