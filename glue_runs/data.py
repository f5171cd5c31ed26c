"""Rows in, from the Hub, from the official TSV files or generated; the paper's split; tokens out."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .grammar import generate_entailment
from .tasks import InputError, Task

logger = logging.get_logger(__name__)

_HUB_DATASET = "nyu-mll/glue"


def load_splits(
    task: Task, data_dir: str | None, validation_fraction: float = 0.2, split_seed: int = 0
) -> DatasetDict:
    """The rows of `task` as `train`, `validation` and `test`.

    As in the paper, `validation` is split off the official training set, by `split_seed`, and the official validation
    set is the `test` set. The authors' code splits anew with the seed of each run: pass that seed to do the same.

    Args:
        task: what to load.
        data_dir: folder that holds the official files as `RTE/train.tsv` and so on; None: `nyu-mll/glue` on the Hub.
        validation_fraction: share of the official training set, between 0 and 1.
        split_seed: the same seed always gives the same rows.

    Raises:
        InputError: the files are missing or malformed, or the Hub cannot be reached.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction must lie between 0 and 1, not {validation_fraction}.")
    official = _load_official(task, data_dir)
    for split, expected in (("train", task.train_rows), ("validation", task.validation_rows)):
        if len(official[split]) != expected:
            logger.warning(f"{task.name} has {len(official[split])} {split} rows here, officially {expected}.")
    parts = official["train"].train_test_split(test_size=validation_fraction, seed=split_seed)
    return DatasetDict(train=parts["train"], validation=parts["test"], test=official["validation"])


def tokenize(splits: DatasetDict, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    """Token ids of every row, cut at `max_length` tokens and not padded: batches are padded to their longest row.

    Raises:
        InputError: `max_length` is too small for a row, or too large for the encoder.
    """
    longest = min(tokenizer.model_max_length, 10_000)  # where the tokenizer knows no limit, it says 1e30
    if not 8 <= max_length <= longest:
        raise InputError(f"max_length must lie between 8 and {longest} tokens, not {max_length}.")

    def encode(rows: dict[str, list[str]]) -> Any:
        return tokenizer(*(rows[column] for column in task.text_columns), truncation=True, max_length=max_length)

    unused = [column for column in splits["train"].column_names if column != "label"]
    return splits.map(encode, batched=True, remove_columns=unused, desc=f"Tokenizing {task.name}")


def _load_official(task: Task, data_dir: str | None) -> DatasetDict:
    if not task.folder:
        train = generate_entailment(task.train_rows, seed=0)
        validation = generate_entailment(task.validation_rows, seed=1)
        return DatasetDict(train=_dataset(train, task), validation=_dataset(validation, task))
    if data_dir is None:
        try:
            hub = load_dataset(_HUB_DATASET, task.name)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{_HUB_DATASET} cannot be loaded ({reason}): pass the folder of the official TSV files as --data_dir."
            ) from error
        return DatasetDict(train=hub["train"], validation=hub["validation"])
    folder = Path(data_dir) / task.folder
    return DatasetDict(
        train=_dataset(read_tsv(folder / "train.tsv", task), task),
        validation=_dataset(read_tsv(folder / "dev.tsv", task), task),
    )


def _dataset(rows: list[dict[str, Any]], task: Task) -> Dataset:
    text = {column: Value("string") for column in task.text_columns}
    features = Features({**text, "label": ClassLabel(names=list(task.labels)), "idx": Value("int32")})
    return Dataset.from_list(rows, features=features)


def read_tsv(path: Path, task: Task) -> list[dict[str, Any]]:
    """Rows of one official GLUE file, which quotes nothing: a quotation mark is a character like any other.

    Raises:
        InputError: the file is missing or empty, or a line has the wrong number of columns or an unknown label.
    """
    classes = {label: index for index, label in enumerate(task.tsv_labels)}
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if task.tsv_header:
                next(lines, None)
            for cells in lines:
                if len(cells) != len(task.tsv_columns):
                    raise InputError(
                        f"{path}, line {lines.line_num}: {len(cells)} columns, expected {len(task.tsv_columns)}."
                    )
                row = dict(zip(task.tsv_columns, cells, strict=True))
                if row["label"] not in classes:
                    raise InputError(
                        f"{path}, line {lines.line_num}: label {row['label']!r} is none of {', '.join(classes)}."
                    )
                text = {column: row[column] for column in task.text_columns}
                rows.append({**text, "label": classes[row["label"]], "idx": len(rows)})
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): --data_dir is the folder above it.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    if not rows:
        raise InputError(f"{path} has no rows.")
    return rows
