"""Batches for any text, image or audio model from a file, a folder or a dataset on the Hub."""

from __future__ import annotations

import csv
import glob
import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from scipy.signal import resample_poly
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PretrainedConfig

_FORMATS = {".tsv": "csv", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_SHUFFLED = 10_000  # size of the shuffle buffer for a dataset on the Hub, in examples

Example = dict[str, Any]
Collate = Callable[[Sequence[Example]], dict[str, torch.Tensor]]


def load_examples(data: str, count: int, *, split: str = "train", name: str | None = None) -> list[Example]:
    """At most `count` examples, drawn with a fixed seed.

    Args:
        data: a .tsv or .csv file with a header line, a .json, .jsonl or .parquet file; a folder of images or audio
            files, or one written by `save_to_disk` of datasets; otherwise a dataset on the Hub.
        split: split of a dataset on the Hub, or of a folder that has several.
        name: configuration of a dataset on the Hub.

    Raises:
        ValueError: the format is unknown, or there is no example.
        OSError: the data cannot be read.
    """
    path = Path(data)
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise ValueError(f"{data} is neither a regular file nor a folder.")
    if not path.exists() and (path.suffix in _FORMATS or data.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"{data} does not exist.")
    try:
        if not path.exists():
            stream = load_dataset(data, name, split=split, streaming=True).shuffle(seed=0, buffer_size=_SHUFFLED)
            drawn = list(islice(stream, count))
        else:
            examples = _from_folder(path, split) if path.is_dir() else _from_file(path)
            drawn = list(examples.shuffle(seed=0).select(range(min(len(examples), count))))
    except OSError:
        raise
    except Exception as error:  # each format raises its own errors
        raise ValueError(f"{data} cannot be read: {error.__cause__ or error or type(error).__name__}") from error
    if not drawn:
        raise ValueError(f"{data} has no examples.")
    return drawn


def collate_for(
    model: str, config: PretrainedConfig, examples: Sequence[Example], text_columns: Sequence[str] | None, length: int
) -> Collate:
    """A function that converts examples to the arguments of the model, depending on the type of the columns.

    Args:
        model: name on the Hub, or folder, of the tokenizer, image processor or feature extractor.
        text_columns: one or two text columns. None: the first column of images or audio, or else all text columns, or
            else the first column of lists of numbers, which are taken for audio.
        length: maximum tokens per text.

    Raises:
        ValueError: the columns do not exist, there are not one or two of them, or the tokenizer knows no token of any
            example.
        OSError: there is no tokenizer or processor.
    """
    kinds = {
        column: _kind(next((example[column] for example in examples if example[column] is not None), None))
        for column in examples[0]
    }
    for kind, collate in (("image", _images), ("audio", _audio)):
        found = [column for column, own in kinds.items() if own == kind]
        if found and text_columns is None:
            return collate(model, found[0])
    texts = [column for column, kind in kinds.items() if kind == "text" and column != "label"]
    columns = list(text_columns or texts)
    numbers = [column for column, kind in kinds.items() if kind == "numbers"]
    if numbers and not columns:
        return _audio(model, numbers[0])
    if not 1 <= len(columns) <= 2 or not set(columns) <= set(kinds):
        raise ValueError(
            f"--text_columns must name one or two of these columns: {', '.join(kinds)}; "
            f"not {', '.join(columns) or 'none'}."
        )
    return _texts(model, config, examples, columns, length)


def batches(examples: Sequence[Example], size: int, collate: Collate) -> Iterator[dict[str, torch.Tensor]]:
    """The arguments of the model for `size` examples at a time; drops a last batch of one unless `size` is 1."""
    for start in range(0, len(examples), size):
        batch = examples[start : start + size]
        if len(batch) > 1 or size == 1:
            yield collate(batch)


def _from_folder(path: Path, split: str) -> Dataset:
    if (path / "state.json").is_file():
        return load_from_disk(str(path))
    if (path / "dataset_dict.json").is_file():
        return _split_of(load_from_disk(str(path)), split)
    suffixes = {file.suffix.lower() for file in path.rglob("*") if file.is_file()}
    for builder, extensions in (("imagefolder", ImageFolder.EXTENSIONS), ("audiofolder", AudioFolder.EXTENSIONS)):
        if suffixes & set(extensions):
            return _split_of(load_dataset(builder, data_dir=glob.escape(str(path))), split)
    raise ValueError("it has no images or audio files: for texts, name a file instead.")


def _split_of(splits: DatasetDict, split: str) -> Dataset:
    if split not in splits:
        raise ValueError(f"it has no split {split}, but {', '.join(splits)}: name one of them with --split.")
    return splits[split]


def _from_file(path: Path) -> Dataset:
    if path.suffix not in _FORMATS:
        raise ValueError(f"the file must be one of {', '.join(_FORMATS)}.")
    if _FORMATS[path.suffix] == "json":  # pyarrow aborts the process on anything else
        with path.open("rb") as file:
            if file.read(2**16).lstrip()[:1] not in (b"[", b"{"):
                raise ValueError("the file is neither a JSON list nor lines of JSON objects.")
    # GLUE files have no quoting.
    options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    return load_dataset(_FORMATS[path.suffix], data_files=glob.escape(str(path)), split="train", **options)


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if hasattr(value, "getbands"):  # a Pillow image; Pillow may not be installed
        return "image"
    if hasattr(value, "get_all_samples"):
        return "audio"
    return "numbers" if isinstance(value, list) and value and isinstance(value[0], float) else "other"


def _text(value: Any) -> str:
    """An empty cell is an empty text."""
    return "" if value is None else str(value)


def _texts(
    model: str, config: PretrainedConfig, examples: Sequence[Example], columns: Sequence[str], length: int
) -> Collate:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id  # required by decoders to classify batches
    texts = [_text(example[column]) for example in examples for column in columns]
    token_ids = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    if set().union(*token_ids) <= set(tokenizer.all_special_ids):
        raise ValueError(f"The tokenizer of {model} knows no token of the examples: use the model's own.")

    def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        texts = [[_text(example[column]) for example in examples] for column in columns]
        inputs = dict(tokenizer(*texts, truncation=True, max_length=length, padding=True, return_tensors="pt"))
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = inputs["input_ids"]
            inputs["decoder_attention_mask"] = inputs["attention_mask"]
        return inputs

    return collate


def _images(model: str, column: str) -> Collate:
    processor = AutoImageProcessor.from_pretrained(model)  # type: ignore[no-untyped-call]

    def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        images = [example[column].convert("RGB") for example in examples]
        return dict(processor(images, return_tensors="pt"))

    return collate


def _audio(model: str, column: str) -> Collate:
    extractor = AutoFeatureExtractor.from_pretrained(model)  # type: ignore[no-untyped-call]
    own = inspect.signature(type(extractor).__call__).parameters.get("padding")
    # Whisper pads all audio to one length by default, and its model takes no other.
    padding = own.default if own is not None and isinstance(own.default, str) else True

    def samples(value: Any) -> Any:
        """One channel, at the sampling rate of the model; a list of numbers is taken to have that rate."""
        if not hasattr(value, "get_all_samples"):
            return np.asarray(value)
        decoded = value.get_all_samples()
        channel = np.asarray(decoded.data).mean(0)
        return resample_poly(channel, extractor.sampling_rate, decoded.sample_rate)

    def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        arrays = [samples(example[column]) for example in examples]
        return dict(extractor(arrays, sampling_rate=extractor.sampling_rate, padding=padding, return_tensors="pt"))

    return collate
