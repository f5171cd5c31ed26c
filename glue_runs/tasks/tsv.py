"""Reads the files of the official GLUE distribution."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..errors import InputError
from ..files import check_is_file
from .glue import Task

logger = logging.get_logger(__name__)


def tsv_path(data_dir: str, task: Task, split: str) -> Path:
    """Path of a split: "train", or one of `task.test_splits`, whose files are named `dev`, `dev_matched` and so on."""
    return Path(data_dir) / task.folder / f"{split.replace('validation', 'dev')}.tsv"


def read_tsv(path: Path, task: Task) -> list[dict[str, Any]]:
    """Examples of one official GLUE file. The files do not quote: a quotation mark is an ordinary character.

    Raises:
        InputError: the file is missing, empty or not text, or a line has the wrong number of columns or an unknown
            label.
    """
    rows: list[dict[str, Any]] = []
    broken = 0
    try:
        check_is_file(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(_without_nul(file, path), delimiter="\t", quoting=csv.QUOTE_NONE)
            columns, width = _columns(path, task, lines)
            for cells in lines:
                place = f"{path}, line {lines.line_num}"
                if len(cells) != width:
                    broken += 1
                    if broken > task.tsv_broken_lines:
                        raise InputError(f"{place}: {len(cells)} columns, expected {width}.")
                    continue
                row: dict[str, Any] = {name: cells[column] for name, column in columns.items()}
                rows.append({**row, "label": _label(row["label"], task, place), "idx": len(rows)})
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): --data_dir is the folder above it.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except csv.Error as error:
        raise InputError(
            f"{path}, line {lines.line_num}: {error}: it is not an official file of {task.name}."
        ) from error
    if not rows:
        raise InputError(f"{path} has no examples.")
    if broken:
        logger.warning(f"{path}: {broken} lines lack columns and are left out.")
    return rows


def _without_nul(file: Iterable[str], path: Path) -> Iterator[str]:
    """The lines, without NUL bytes: some versions of the csv module accept them, and tokenizers drop them."""
    for number, line in enumerate(file, 1):
        if "\0" in line:
            raise InputError(f"{path}, line {number}: it has NUL bytes and is therefore not text.")
        yield line


def _columns(path: Path, task: Task, lines: Iterator[list[str]]) -> tuple[dict[str, int], int]:
    """Position of each required column, and the number of all columns."""
    header = list(task.tsv_header) or next(lines, [])
    missing = [column for column in task.tsv_columns.values() if column not in header]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r} in line 1: it is not an official file of {task.name}.")
    return {name: header.index(column) for name, column in task.tsv_columns.items()}, len(header)


def _label(text: str, task: Task, place: str) -> int | float:
    if task.labels:
        if text not in task.tsv_labels:
            raise InputError(f"{place}: label {text!r} is none of {', '.join(task.tsv_labels)}.")
        return task.tsv_labels.index(text)
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{place}: score {text!r} is not a number.")
    return score
