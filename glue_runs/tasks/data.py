"""Loads examples from the Hub, from the official TSV files or from the grammar, tokenizes and splits them."""

from __future__ import annotations

import math
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..errors import InputError
from .glue import Task
from .grammar import generate
from .tsv import read_tsv, tsv_path

logger = logging.get_logger(__name__)

HUB_DATASET = "nyu-mll/glue"

ROUNDINGS = ("up", "down")
"""How a fraction of the training set is rounded to a whole number of examples."""


def load_official(task: Task, data_dir: str | None) -> DatasetDict:
    """The official examples of `task`: `train`, and its `test_splits`.

    Args:
        task: the task to load.
        data_dir: folder with the official files, as in `RTE/train.tsv`; None: `nyu-mll/glue` on the Hub.

    Raises:
        InputError: the files are missing or malformed, or the Hub cannot be reached.
    """
    sizes = {"train": task.train_examples, **task.test_splits}
    if task.generated:
        return DatasetDict({s: _dataset(generate(task.name, sizes[s], seed), task) for seed, s in enumerate(sizes)})
    if data_dir is None:
        splits = _from_hub(task, list(sizes))
    else:
        splits = DatasetDict(
            {split: _dataset(read_tsv(tsv_path(data_dir, task, split), task), task) for split in sizes}
        )
    for split, expected in sizes.items():
        if len(splits[split]) != expected:
            logger.warning(f"{task.name} has {len(splits[split])} {split} examples here, officially {expected}.")
    return splits


def tokenize(
    splits: DatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    pad_to_max_length: bool = False,
) -> DatasetDict:
    """Token ids of every example, cut at `max_length` tokens.

    Args:
        pad_to_max_length: pad every example to `max_length`; otherwise, batches are padded to their longest example.

    Raises:
        InputError: `max_length` is too small for an example or too large for the encoder, or the tokenizer knows none
            of the words.
    """
    longest = min(tokenizer.model_max_length, 10_000)  # 1e30 where the tokenizer has no limit
    if not 8 <= max_length <= longest:
        raise InputError(f"max_length must lie between 8 and {longest} tokens, not {max_length}.")
    padding = "max_length" if pad_to_max_length else False

    def encode(examples: dict[str, list[str]]) -> Any:
        texts = [examples[column] for column in task.text_columns]
        return tokenizer(*texts, truncation=True, max_length=max_length, padding=padding)

    unused = [column for column in splits["train"].column_names if column != "label"]
    tokenized = splits.map(encode, batched=True, remove_columns=unused, desc=f"Tokenizing {task.name}")
    special = set(tokenizer.all_special_ids)  # the unknown token is one of them
    if all(special.issuperset(example) for example in tokenized["train"]["input_ids"]):
        raise InputError(
            f"The tokenizer knows none of the words of {task.name}: give an encoder with the tokenizer that it was "
            "trained with."
        )
    return tokenized


def split(
    official: DatasetDict,
    task: Task,
    validation_fraction: float = 0.2,
    split_seed: int = 0,
    rounding: str = "up",
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> DatasetDict:
    """`train` and `validation`, both from the official training set, and the official validation set as `test`.

    The training set is shuffled with the seed, and its first examples are the validation set. With the seed of the run
    and rounding down, this is the split of the authors' code. A second official validation set (MNLI's mismatched one)
    becomes `test_mismatched`.

    Args:
        validation_fraction: fraction of the official training set, between 0 and 1.
        split_seed: the same seed always gives the same examples.
        rounding: how the fraction is rounded to a whole number of examples, `"up"` or `"down"`.
        max_train_samples: keep at most this many examples of `train`; None: all.
        max_eval_samples: keep at most this many examples of each other split; None: all.

    Raises:
        InputError: `validation_fraction` is out of range, or leaves a split without examples.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction must lie between 0 and 1, not {validation_fraction}.")
    count = len(official["train"])
    share = (math.ceil if rounding == "up" else math.floor)(validation_fraction * count)
    if not 0 < share < count:
        raise InputError(
            f"validation_fraction {validation_fraction} makes {share} of {count} training examples of {task.name} the "
            "validation set: both parts need at least one."
        )
    parts = official["train"].train_test_split(test_size=share, seed=split_seed)
    tests = {name_as_test(name): official[name] for name in task.test_splits}
    evaluated = {"validation": parts["test"], **tests}
    return DatasetDict(
        train=_first(parts["train"], max_train_samples),
        **{name: _first(examples, max_eval_samples) for name, examples in evaluated.items()},
    )


def _first(examples: Dataset, count: int | None) -> Dataset:
    return examples if count is None else examples.select(range(min(count, len(examples))))


def name_as_test(official_split: str) -> str:
    """Name of an official validation set that serves as a test set."""
    return official_split.replace("validation", "test").removesuffix("_matched")


def _from_hub(task: Task, splits: list[str]) -> DatasetDict:
    try:
        dataset = load_dataset(HUB_DATASET, task.name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{HUB_DATASET} cannot be loaded ({reason}): pass the folder of the official TSV files as --data_dir."
        ) from error
    return DatasetDict({split: dataset[split] for split in splits})


def _dataset(examples: list[dict[str, Any]], task: Task) -> Dataset:
    text = {column: Value("string") for column in task.text_columns}
    label = ClassLabel(names=list(task.labels)) if task.labels else Value("float32")
    return Dataset.from_list(examples, features=Features({**text, "label": label, "idx": Value("int32")}))
