"""The GLUE tasks as data: columns, labels, metrics, official sizes and the layout of the official files."""

from __future__ import annotations

from dataclasses import dataclass


class InputError(ValueError):
    """What the user gave cannot be run; the message is one sentence that names the remedy."""


@dataclass(frozen=True)
class Task:
    """One task. `text_columns` and `labels` are those of `nyu-mll/glue`; a label's index is its class."""

    name: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train_rows: int
    validation_rows: int
    folder: str = ""  # of the official distribution; empty for a task that is generated
    tsv_columns: tuple[str, ...] = ()  # columns of the official files, in order, under the names used here
    tsv_header: bool = True  # whether the official files start with a line of column names
    tsv_labels: tuple[str, ...] = ()  # labels as the official files write them


TASKS = {
    task.name: task
    for task in (
        Task(
            name="rte",
            text_columns=("sentence1", "sentence2"),
            labels=("entailment", "not_entailment"),
            metrics=("accuracy",),
            train_rows=2490,
            validation_rows=277,
            folder="RTE",
            tsv_columns=("idx", "sentence1", "sentence2", "label"),
            tsv_labels=("entailment", "not_entailment"),
        ),
        Task(
            name="mrpc",
            text_columns=("sentence1", "sentence2"),
            labels=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            train_rows=3668,
            validation_rows=408,
            folder="MRPC",
            tsv_columns=("label", "id1", "id2", "sentence1", "sentence2"),
            tsv_labels=("0", "1"),
        ),
        Task(
            name="cola",
            text_columns=("sentence",),
            labels=("unacceptable", "acceptable"),
            metrics=("matthews_correlation",),
            train_rows=8551,
            validation_rows=1043,
            folder="CoLA",
            tsv_columns=("source", "label", "author_mark", "sentence"),
            tsv_header=False,
            tsv_labels=("0", "1"),
        ),
        Task(
            name="demo_rte",
            text_columns=("sentence1", "sentence2"),
            labels=("entailment", "not_entailment"),
            metrics=("accuracy",),
            train_rows=800,
            validation_rows=200,
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of that name in any case; `InputError` if there is none."""
    try:
        return TASKS[name.lower()]
    except KeyError:
        raise InputError(f"There is no task {name!r}: choose one of {', '.join(TASKS)}.") from None
