from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from lbe_hf.flow_data import batches, collate_for, load_examples


def test_examples_are_drawn_with_a_fixed_seed_and_tabs_alone_separate(tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    file.write_text("text\tlabel\n" + "".join(f'say "{index}\t{index % 2}\n' for index in range(20)))
    drawn = load_examples(str(file), 8)
    assert drawn == load_examples(str(file), 8)
    assert len({example["text"] for example in drawn}) == 8
    assert all(example["text"].startswith('say "') for example in drawn)
    assert len(load_examples(str(file), 99)) == 20


def test_brackets_in_a_path_are_no_pattern(tmp_path: Path) -> None:
    for name, word in (("a[1].csv", "asked for"), ("a1.csv", "another file")):
        (tmp_path / name).write_text("text\n" + f"{word}\n" * 3)
    assert [example["text"] for example in load_examples(str(tmp_path / "a[1].csv"), 8)] == ["asked for"] * 3
    folder = tmp_path / "photographs [2024]"
    folder.mkdir()
    pytest.importorskip("PIL.Image").new("RGB", (4, 4)).save(folder / "one.png")
    assert len(load_examples(str(folder), 8)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.xls", "x", "the file must be one of .tsv"),
        ("data.json", "null", "neither a JSON list nor lines"),
        ("data.csv", "text\n", "data.csv cannot be read"),
    ],
)
def test_unusable_files(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_examples(str(tmp_path / name), 4)


class Decoder:
    """As the one of torchcodec, which `datasets` puts in place of a sound file: a tone in stereo at 48 kHz."""

    def get_all_samples(self) -> SimpleNamespace:
        seconds = torch.arange(4800) / 48000
        return SimpleNamespace(data=torch.sin(2 * torch.pi * 440 * seconds).repeat(2, 1), sample_rate=48000)


def test_sound_is_brought_to_the_sampling_rate_of_the_model(tmp_path: Path) -> None:
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)  # 16 kHz
    examples = [{"audio": Decoder()}, {"audio": Decoder()}]
    inputs = collate_for(str(tmp_path), Wav2Vec2Config(), examples, None, 128)(examples)["input_values"]
    assert inputs.shape == (2, 1600)
    spectrum = torch.fft.rfft(inputs[0]).abs()
    assert spectrum.argmax().item() == 44  # of 10 Hz: 440 Hz, and not three times that


def test_whisper_gets_sound_of_its_own_length(tmp_path: Path) -> None:
    WhisperFeatureExtractor().save_pretrained(tmp_path)  # 30 s, of which a frame takes 10 ms
    examples = [{"audio": Decoder()}, {"audio": Decoder()}]
    inputs = collate_for(str(tmp_path), WhisperConfig(is_encoder_decoder=False), examples, None, 128)(examples)
    assert inputs["input_features"].shape == (2, 80, 3000)


def test_columns_that_do_not_exist_are_named_beside_those_that_do() -> None:
    config: Any = SimpleNamespace(is_encoder_decoder=False)
    with pytest.raises(ValueError, match="one or two of these columns: a, b; not c"):
        collate_for("model", config, [{"a": "x", "b": 1}], ["c"], 8)


@pytest.mark.parametrize(("count", "size", "sizes"), [(7, 3, [3, 3]), (8, 3, [3, 3, 2]), (3, 1, [1, 1, 1])])
def test_one_example_alone_is_dropped(count: int, size: int, sizes: list[int]) -> None:
    def collate(examples: Any) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(len(examples))}

    examples = [{"x": index} for index in range(count)]
    assert [len(batch["x"]) for batch in batches(examples, size, collate)] == sizes


def test_empty_cells_are_empty_texts_and_say_nothing_of_the_column(tiny_encoder: str) -> None:
    examples = [{"text": None, "vector": [0.5, 1.0]}, {"text": "the cat", "vector": [0.1, 0.2]}]
    config = AutoConfig.from_pretrained(tiny_encoder)
    inputs = collate_for(tiny_encoder, config, examples, None, 8)(examples)
    expected = AutoTokenizer.from_pretrained(tiny_encoder)(["", "the cat"], padding=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


def test_lists_of_numbers_are_sound_where_there_is_nothing_else(tmp_path: Path) -> None:
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    examples: list[dict[str, Any]] = [{"sound": [0.5, 0.25], "label": 1}, {"sound": [0.5, 1.0], "label": 0}]
    inputs = collate_for(str(tmp_path), Wav2Vec2Config(), examples, None, 8)(examples)
    assert inputs["input_values"].tolist() == [[0.5, 0.25], [0.5, 1.0]]
