import pytest

from glue_runs.errors import InputError
from glue_runs.tasks.glue import TASKS, get_task


def test_tasks_are_found_in_any_case() -> None:
    assert get_task("RTE") is TASKS["rte"]
    assert get_task("CoLA") is TASKS["cola"]


def test_unknown_task() -> None:
    with pytest.raises(InputError, match=r"no task 'sst': choose one of rte, mrpc, cola, sst2, .*demo_rte"):
        get_task("sst")


def test_tables_are_consistent() -> None:
    assert len([task for task in TASKS.values() if not task.generated]) == 9
    for task in TASKS.values():
        if not task.generated:
            assert set(task.tsv_columns) == {*task.text_columns, "label"}
            assert len(task.tsv_labels) == len(task.labels)


def test_score_that_glue_ranks_by() -> None:
    assert TASKS["mrpc"].scores == ("accuracy", "f1", "combined_score")
    assert TASKS["cola"].scores == ("matthews_correlation",)
    assert [TASKS[name].main_metric for name in ("mrpc", "cola")] == ["combined_score", "matthews_correlation"]
