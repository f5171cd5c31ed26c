import math
from typing import Any

import pandas as pd
from grids import made_up

from glue_runs.analysis.selection import best_run, choose_settings, runs_to_keep
from glue_runs.analysis.table import tabulate


def results(*records: dict[str, Any]) -> pd.DataFrame:
    return tabulate({f"run{index:02d}": {"diverged": False, **record} for index, record in enumerate(records)})


def test_settings_are_chosen_by_validation_even_where_test_says_otherwise() -> None:
    records = [made_up(0.6, 0.2, seed) for seed in (1, 2)]
    records += [made_up(0.5, 0.9, seed, learning_rate=3e-5) for seed in (1, 2)]
    records += [made_up(0.4, 0.8, seed, beta=0.01) for seed in (1, 2)]
    records += [made_up(0.5, 0.1, seed, beta=0.05) for seed in (1, 2)]
    chosen = choose_settings(results(*records))
    assert chosen[["method", "learning_rate", "beta", "test"]].drop_duplicates().values.tolist() == [
        ["baseline", 1e-5, 0.0, 0.2],
        ["LBE on hidden_states", 1e-5, 0.05, 0.1],
    ]


def test_of_equal_means_the_first_in_the_grid_is_chosen_in_spite_of_rounding() -> None:
    scores = (0.6, 0.7, 0.8)
    assert sum(scores) / 3 < sum(reversed(scores)) / 3
    records = [
        made_up(score, 0.5, seed, learning_rate=rate, beta=0.05, method=method)
        for rate, method, own in ((1e-5, "a", scores), (3e-5, "a", scores[::-1]), (1e-5, "b", scores[::-1]))
        for seed, score in enumerate(own)
    ]
    table = results(*records)
    assert set(choose_settings(table)["learning_rate"]) == {1e-5}
    assert best_run(table) == "run02"


def test_a_lucky_setting_with_fewer_seeds_is_not_chosen() -> None:
    records = [made_up(0.5, 0.5, seed) for seed in (1, 2)] + [made_up(0.9, 0.9, 1, learning_rate=3e-5)]
    assert set(choose_settings(results(*records))["learning_rate"]) == {1e-5}


def test_a_setting_with_a_score_that_is_not_a_number_is_never_chosen() -> None:
    lucky = [made_up(0.9, 0.9, 1, learning_rate=3e-5), made_up(math.nan, 0.9, 2, learning_rate=3e-5)]
    plain = made_up(0.5, 0.5, 1)
    assert set(choose_settings(results(*lucky, plain))["learning_rate"]) == {1e-5}
    assert choose_settings(results(*lucky)).empty
    assert best_run(results(*lucky)) is None


def test_what_diverged_is_chosen_only_where_all_did_and_is_never_the_best_run() -> None:
    fast = [made_up(0.4, 0.5, seed, learning_rate=3e-5, diverged=seed == 2) for seed in (1, 2)]
    slow = [made_up(0.3, 0.5, seed) for seed in (1, 2)]
    table = results(*fast, *slow)
    assert set(choose_settings(table)["learning_rate"]) == {1e-5}
    assert best_run(table) == "run03"
    assert runs_to_keep(table, "best") == {"run00"}
    assert set(choose_settings(results(*fast))["learning_rate"]) == {3e-5}
    assert best_run(results(*fast)) == "run00"
    assert best_run(results(fast[1])) is None
    assert runs_to_keep(results(fast[1], slow[0]), "best") == {"run01"}
    lbe = [made_up(0.9, 0.5, 1, beta=0.05, diverged=True)]
    assert best_run(results(*lbe, *slow)) == "run02"


def test_nothing_to_choose_from() -> None:
    assert choose_settings(results()).empty
    assert best_run(results()) is None
    assert runs_to_keep(results(), "best") == set()


def test_best_run_and_what_is_kept() -> None:
    scores = {0.0: (0.9, 0.9), 0.1: (0.8, 0.1), 0.2: (0.6, 0.7), 0.3: (0.5, 0.6)}
    table = results(
        *(made_up(value, 1 - value, seed, beta=beta) for beta, own in scores.items() for seed, value in enumerate(own))
    )
    assert best_run(table) == "run05"  # with LBE: mean 0.65, seed 1
    assert best_run(table[table["method"] == "baseline"]) == "run01"  # of equals the last one
    assert runs_to_keep(table, "settings") == {"run01", "run02", "run05", "run07"}
    assert runs_to_keep(table, "best") == {"run01", "run02"}  # of each method the best score
    assert runs_to_keep(table, "all") == set(table["name"])
    assert runs_to_keep(table, "none") == set()
