"""Three digests of what a run is trained on: the path alone does not tell, since its content may change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import DatasetDict
from huggingface_hub import try_to_load_from_cache
from transformers import CONFIG_NAME

from .encoder import locate

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.index.json")
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")


def fingerprint(model_name_or_path: str, examples: DatasetDict) -> dict[str, str]:
    """SHA-256 of `weights`, `tokenizer` and tokenized `examples`, in hexadecimal.

    The weights include the configuration of the model. For a model on the Hub, the files are those in the cache;
    `weights` and `tokenizer` are left out if the weights are not there.

    Args:
        model_name_or_path: as for `load_model`.
        examples: as `tokenize` returns them.
    """
    return {**fingerprint_encoder(model_name_or_path), "examples": _digest_of_examples(examples)}


def changed_parts(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the digests that differ; a digest that either side lacks is not compared."""
    return [part for part in now if before.get(part, now[part]) != now[part]]


def fingerprint_encoder(model_name_or_path: str) -> dict[str, str]:
    """`fingerprint` without the examples; unchanged files are read once per process."""
    folder = Path(locate(model_name_or_path))
    if not folder.is_dir():
        # Not the commit, which may be one that only edits the README.
        cached = try_to_load_from_cache(model_name_or_path, CONFIG_NAME)
        if not isinstance(cached, str) or not _files(Path(cached).parent, _WEIGHTS):
            return {}
        folder = Path(cached).parent
    patterns = {"weights": (CONFIG_NAME, *_WEIGHTS), "tokenizer": _TOKENIZER}
    return {part: _digest(_files(folder, own)) for part, own in patterns.items()}


def _files(folder: Path, patterns: Iterable[str]) -> tuple[tuple[Path, int, int, int], ...]:
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return tuple((path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path in paths for stat in [path.stat()])


@lru_cache
def _digest(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """SHA-256 of files, each given with its inode, size in bytes and time of change in nanoseconds."""
    digest = hashlib.sha256()
    for path, *_ in files:
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
