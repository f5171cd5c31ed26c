import pytest

from glue_runs.tasks import TASKS, InputError, get_task


def test_tasks_are_found_in_any_case() -> None:
    assert get_task("RTE") is TASKS["rte"]
    assert get_task("CoLA") is TASKS["cola"]


def test_unknown_task() -> None:
    with pytest.raises(InputError, match="no task 'sst': choose one of rte, mrpc, cola, demo_rte"):
        get_task("sst")


def test_tables_are_consistent() -> None:
    for task in TASKS.values():
        if task.folder:
            assert {*task.text_columns, "label"} <= set(task.tsv_columns)
            assert len(task.tsv_labels) == len(task.labels)
