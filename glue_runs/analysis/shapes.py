"""Checks the content of a grid's files, which may come from elsewhere."""

# Without `from __future__ import annotations`: the types are read when a file is.

import re
from pathlib import Path
from typing import Any, TypedDict

from ..errors import InputError
from ..files import check_shape, read_json, wrong_content
from ..tasks.data import name_as_test
from ..tasks.glue import get_task

_GRID = "the file of a grid"
_RECORD = "the record of a run in a grid"
_PLAIN_NAME = re.compile(r"[\w+-][\w.+-]*")  # of a file: no path, neither `.` nor `..`
COMPARE_BY = ["task", "model", "protocol", "fixed_settings"]
"""Fields that two runs must share to be compared."""

HYPERPARAMETERS = ["learning_rate", "alpha", "beta"]
"""Fields that are chosen by validation scores."""

DESCRIBED_BY = [*COMPARE_BY, "method", *HYPERPARAMETERS, "seed"]
"""Fields of a run's description that are columns of the table of results."""

TRAINED_ON = "trained_on"
"""Key of the digests of what a run is trained on, in its description in `grid.json`; results made before lack it."""

_IDENTITY = ("task", "model", "seed", "learning_rate", "alpha", "beta", "settings")
"""Fields that identify a run; the others are names that the grid gives it."""


class Grid(TypedDict):
    """`grid.json`."""

    commands: list[str]
    runs: dict[str, dict[str, Any]]


class Description(TypedDict):
    """What is known of a run before it is done: `Run.description` in `grid.plan`, and what it is trained on."""

    task: str
    model: str
    protocol: str
    fixed_settings: str
    method: str
    learning_rate: float | int
    alpha: float | int | None
    beta: float | int
    seed: int
    settings: dict[str, Any]
    trained_on: dict[str, str]


class LogLine(TypedDict):
    """A line of a record's history, losses and entropies in nats."""

    step: int
    task_loss: float | int
    lbe_loss: float | int
    entropies: list[Any]
    targets: list[Any]


def read_grid(path: Path) -> Grid:
    """The content of a `grid.json`, checked; the names of its runs are plain file names.

    Raises:
        InputError: the file is damaged, or does not describe a grid.
    """
    grid: Grid = read_json(path)
    check_shape(path, grid, Grid, _GRID)
    for name, description in grid["runs"].items():
        if not _PLAIN_NAME.fullmatch(name):
            raise wrong_content(path, _GRID, f"the run {name!r} has a name that is not a plain file name")
        check_shape(path, {TRAINED_ON: {}, **description}, Description, _GRID)
        try:
            get_task(description["task"])
        except InputError as error:
            raise wrong_content(path, _GRID, str(error)) from error
    return grid


def check_record(path: Path, record: dict[str, Any], description: dict[str, Any]) -> None:
    """Check that the record of some run belongs to this run and holds everything that a report reads.

    Raises:
        InputError: it belongs to another run, lacks a score, or has malformed log lines.
    """
    for name in _IDENTITY:
        if name not in record or record[name] != description[name]:
            reason = f"it belongs to another run, whose {name} is {record.get(name)!r} and not {description[name]!r}"
            raise wrong_content(path, _RECORD, reason)
    task = get_task(description["task"])
    for split in ("validation", *map(name_as_test, task.test_splits)):
        if task.main_metric not in record["metrics"].get(split, {}):
            raise wrong_content(path, _RECORD, f"it has no {task.main_metric} of {split}")
    if "device" not in record["environment"]:
        raise wrong_content(path, _RECORD, "its environment has no device")
    for line in record["history"]:
        check_shape(path, line, LogLine, _RECORD)
        # By hand, which is faster: they are most of what a large grid has to read.
        for name in ("entropies", "targets"):
            values = line[name]
            if len(values) not in (0, len(record["layers"])) or not all(isinstance(v, (float, int)) for v in values):
                raise wrong_content(path, _RECORD, f"the {name} of step {line['step']} are not one number per layer")
