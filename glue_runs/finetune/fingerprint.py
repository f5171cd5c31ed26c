"""What a run is trained on, in three digests: its name tells a path, and what lies there may change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import DatasetDict
from huggingface_hub import try_to_load_from_cache
from transformers import CONFIG_NAME

from .encoder import locate

_WEIGHTS = (CONFIG_NAME, "*.safetensors", "pytorch_model*.bin", "*.index.json")
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


def fingerprint(model_name_or_path: str, examples: DatasetDict) -> dict[str, str]:
    """SHA-256 of `weights`, `tokenizer` and tokenized `examples`, in hexadecimal.

    Weights include the configuration of the model. Those of a name on the Hub, and its tokenizer, are the commit that
    is in the cache; without one they are left out.

    Args:
        model_name_or_path: as `load_model` takes it.
        examples: as `tokenize` returns them.
    """
    return {**_encoder(locate(model_name_or_path)), "examples": _digest_of_examples(examples)}


def _encoder(name_or_path: str) -> dict[str, str]:
    folder = Path(name_or_path)
    if folder.is_dir():
        return {"weights": _digest_of_files(folder, _WEIGHTS), "tokenizer": _digest_of_files(folder, _TOKENIZER)}
    cached = try_to_load_from_cache(name_or_path, CONFIG_NAME)
    if not isinstance(cached, str):
        return {}
    commit = f"commit {Path(cached).parent.name}"
    return {"weights": commit, "tokenizer": commit}


def _digest_of_files(folder: Path, patterns: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _digest_of_examples(examples: DatasetDict) -> str:
    digest = hashlib.sha256()
    for split, dataset in sorted(examples.items()):
        table: pa.Table = dataset.with_format("arrow")[:]
        for name in sorted(table.column_names):
            column = table.column(name).combine_chunks()
            digest.update(f"{split} {name} {len(column)}".encode())
            if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
                digest.update(pc.list_value_length(column).to_numpy().astype(np.int64).tobytes())
                column = pc.list_flatten(column)
            kind = np.float64 if pa.types.is_floating(column.type) else np.int64
            digest.update(column.to_numpy(zero_copy_only=False).astype(kind).tobytes())
    return digest.hexdigest()
