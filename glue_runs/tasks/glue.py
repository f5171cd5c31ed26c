"""The nine GLUE tasks and three generated ones as data: columns, labels, metrics, official sizes and file layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import InputError


@dataclass(frozen=True)
class Task:
    """One task. Text columns, `labels` and the keys of `test_splits` are those of `nyu-mll/glue`.

    A label's index is its class; a task without labels is a regression. `test_splits` gives the official validation
    sets, which are tested on here, with their sizes; the first one counts where one number is wanted.
    """

    name: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train_rows: int
    test_splits: Mapping[str, int]
    folder: str = ""  # of the official distribution; empty for a task that is generated
    tsv_columns: Mapping[str, str] = field(default_factory=dict)  # what the official files call text columns and label
    tsv_header: tuple[str, ...] = ()  # columns of official files that have no header line
    tsv_labels: tuple[str, ...] = ()  # labels as the official files write them
    tsv_broken_rows: int = 0  # rows of the official files that lack columns

    @property
    def scores(self) -> tuple[str, ...]:
        """The metrics and, where there are two, their mean as `combined_score`."""
        return self.metrics if len(self.metrics) == 1 else (*self.metrics, "combined_score")

    @property
    def main_metric(self) -> str:
        """The score that GLUE ranks by."""
        return self.scores[-1]

    @property
    def generated(self) -> bool:
        """Whether the package makes the rows itself."""
        return not self.folder


_GLUE = (
    Task(
        name="rte",
        text_columns=("sentence1", "sentence2"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        train_rows=2490,
        test_splits={"validation": 277},
        folder="RTE",
        tsv_columns={"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"},
        tsv_labels=("entailment", "not_entailment"),
    ),
    Task(
        name="mrpc",
        text_columns=("sentence1", "sentence2"),
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        train_rows=3668,
        test_splits={"validation": 408},
        folder="MRPC",
        tsv_columns={"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
        tsv_labels=("0", "1"),
    ),
    Task(
        name="cola",
        text_columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        train_rows=8551,
        test_splits={"validation": 1043},
        folder="CoLA",
        tsv_columns={"sentence": "sentence", "label": "label"},
        tsv_header=("source", "label", "author_mark", "sentence"),
        tsv_labels=("0", "1"),
    ),
    Task(
        name="sst2",
        text_columns=("sentence",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        train_rows=67349,
        test_splits={"validation": 872},
        folder="SST-2",
        tsv_columns={"sentence": "sentence", "label": "label"},
        tsv_labels=("0", "1"),
    ),
    Task(
        name="stsb",
        text_columns=("sentence1", "sentence2"),
        labels=(),
        metrics=("pearson", "spearmanr"),
        train_rows=5749,
        test_splits={"validation": 1500},
        folder="STS-B",
        tsv_columns={"sentence1": "sentence1", "sentence2": "sentence2", "label": "score"},
    ),
    Task(
        name="qqp",
        text_columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        train_rows=363846,
        test_splits={"validation": 40430},
        folder="QQP",
        tsv_columns={"question1": "question1", "question2": "question2", "label": "is_duplicate"},
        tsv_labels=("0", "1"),
        tsv_broken_rows=20,
    ),
    Task(
        name="mnli",
        text_columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metrics=("accuracy",),
        train_rows=392702,
        test_splits={"validation_matched": 9815, "validation_mismatched": 9832},
        folder="MNLI",
        tsv_columns={"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
        tsv_labels=("entailment", "neutral", "contradiction"),
    ),
    Task(
        name="qnli",
        text_columns=("question", "sentence"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        train_rows=104743,
        test_splits={"validation": 5463},
        folder="QNLI",
        tsv_columns={"question": "question", "sentence": "sentence", "label": "label"},
        tsv_labels=("entailment", "not_entailment"),
    ),
    Task(
        name="wnli",
        text_columns=("sentence1", "sentence2"),
        labels=("not_entailment", "entailment"),
        metrics=("accuracy",),
        train_rows=635,
        test_splits={"validation": 71},
        folder="WNLI",
        tsv_columns={"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"},
        tsv_labels=("0", "1"),
    ),
)

_GENERATED = (
    Task(
        name="demo_rte",
        text_columns=("sentence1", "sentence2"),
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        train_rows=320,
        test_splits={"validation": 160},
    ),
    Task(
        name="demo_mrpc",
        text_columns=("sentence1", "sentence2"),
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        train_rows=320,
        test_splits={"validation": 160},
    ),
    Task(
        name="demo_cola",
        text_columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews_correlation",),
        train_rows=320,
        test_splits={"validation": 160},
    ),
)

TASKS = {task.name: task for task in (*_GLUE, *_GENERATED)}


def get_task(name: str) -> Task:
    """The task of that name in any case; `InputError` if there is none."""
    try:
        return TASKS[name.lower()]
    except KeyError:
        raise InputError(f"There is no task {name!r}: choose one of {', '.join(TASKS)}.") from None
