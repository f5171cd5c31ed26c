import math

from grids import made_up

from glue_runs.analysis.table import tabulate


def test_one_run_a_line_with_the_scores_that_glue_ranks_by() -> None:
    record = {**made_up(0.3, 0.4, seed=7, beta=0.05, penalty=0.02), "diverged": False}
    baseline = {**made_up(0.1, 0.2, seed=7), "diverged": False, "history": []}
    table = tabulate({"second": record, "first": baseline})
    assert list(table["name"]) == ["second", "first"]
    line, bare = table.iloc[0], table.iloc[1]
    assert (line["validation"], line["test"], line["test_loss"], line["seed"]) == (0.3, 0.4, 0.6, 7)
    assert line["penalty"] == 0.02  # lbe_loss 0.01 over task_loss 0.5
    assert (line["task_loss"], line["entropy"]) == (0.5, 0.4)
    assert math.isnan(bare["penalty"])
    assert math.isnan(bare["alpha"])


def test_no_run_still_has_the_columns_by_which_runs_are_chosen() -> None:
    assert {"task", "model", "learning_rate", "beta", "seed", "validation"} <= set(tabulate({}).columns)
