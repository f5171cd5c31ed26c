from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from glue_runs.errors import InputError
from glue_runs.finetune.encoder import load_tokenizer
from glue_runs.tasks.data import load_official, split, tokenize
from glue_runs.tasks.glue import TASKS

DEMO = TASKS["demo_rte"]


def test_hub_out_of_reach() -> None:
    with pytest.raises(InputError, match=r"nyu-mll/glue cannot be loaded .* pass the folder .* as --data_dir"):
        load_official(TASKS["rte"], None)


def test_row_counts_that_differ_are_said(tmp_path: Path, warnings_of: Any) -> None:
    (tmp_path / "RTE").mkdir()
    for name, rows in (("train", 2), ("dev", 1)):
        lines = ["index\tsentence1\tsentence2\tlabel", *(f"{row}\ta\tb\tentailment" for row in range(rows))]
        (tmp_path / "RTE" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    load_official(TASKS["rte"], str(tmp_path))
    assert "rte has 2 train examples here, officially 2490." in warnings_of()
    assert "rte has 1 validation examples here, officially 277." in warnings_of()


def test_split_is_that_of_its_seed() -> None:
    official = load_official(DEMO, None)
    first, again, other = (split(official, DEMO, split_seed=seed) for seed in (0, 0, 1))
    rows = DEMO.train_examples
    sizes = {"train": rows * 4 // 5, "validation": rows // 5, "test": DEMO.test_splits["validation"]}
    assert {name: len(part) for name, part in first.items()} == sizes
    assert first["validation"]["idx"] == again["validation"]["idx"]
    assert first["validation"]["idx"] != other["validation"]["idx"]
    assert sorted([*first["train"]["idx"], *first["validation"]["idx"]]) == list(range(rows))


def test_both_validation_sets_of_mnli_are_tests() -> None:
    rows = {"train": 10, "validation_matched": 2, "validation_mismatched": 3}
    official = DatasetDict({name: Dataset.from_dict({"label": [0] * count}) for name, count in rows.items()})
    sizes = {name: len(part) for name, part in split(official, TASKS["mnli"]).items()}
    assert sizes == {"train": 8, "validation": 2, "test": 2, "test_mismatched": 3}


def numbered(count: int) -> DatasetDict:
    return DatasetDict(
        {name: Dataset.from_dict({"label": list(range(count))}) for name in ("train", *DEMO.test_splits)}
    )


def test_split_of_the_authors() -> None:
    shuffled = numbered(13)["train"].shuffle(seed=3)["label"][:]
    parts = split(numbered(13), DEMO, 0.2, split_seed=3, rounding="down")
    assert parts["validation"]["label"][:] == shuffled[: int(0.2 * 13)]
    assert parts["train"]["label"][:] == shuffled[int(0.2 * 13) :]
    assert len(split(numbered(13), DEMO, 0.2, split_seed=3)["validation"]) == 3


def test_the_first_samples_are_kept() -> None:
    whole = split(numbered(20), DEMO)
    few = split(numbered(20), DEMO, max_train_samples=5, max_eval_samples=2)
    assert {name: part["label"][:] for name, part in few.items()} == {
        name: part["label"][: 5 if name == "train" else 2] for name, part in whole.items()
    }
    assert len(split(numbered(20), DEMO, max_train_samples=99)["train"]) == 16


@pytest.mark.parametrize(("count", "rounding"), [(4, "down"), (1, "up")])
def test_a_split_without_examples(count: int, rounding: str) -> None:
    with pytest.raises(InputError, match=f"of {count} training examples of demo_rte the validation set: both parts"):
        split(numbered(count), DEMO, rounding=rounding)


def test_a_tokenizer_that_knows_no_word(tiny_encoder: str) -> None:
    texts = Dataset.from_dict({"sentence1": ["1", "2"], "sentence2": ["3", "4"], "label": [0, 1]})
    with pytest.raises(InputError, match="The tokenizer knows none of the words of demo_rte"):
        tokenize(DatasetDict(train=texts), DEMO, load_tokenizer(tiny_encoder), max_length=16)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(InputError, match="validation_fraction must lie between 0 and 1"):
        split(load_official(DEMO, None), DEMO, fraction)


def test_tokens_are_cut_and_padded_only_when_asked() -> None:
    tokenizer, official = load_tokenizer("minilm"), load_official(DEMO, None)
    dynamic = tokenize(official, DEMO, tokenizer, max_length=18)["train"]
    assert set(dynamic.column_names) == {"input_ids", "token_type_ids", "attention_mask", "label"}
    lengths = {len(ids) for ids in dynamic["input_ids"]}
    assert max(lengths) == 18
    assert len(lengths) > 1
    padded = tokenize(official, DEMO, tokenizer, max_length=64, pad_to_max_length=True)["train"]
    assert {len(ids) for ids in padded["input_ids"]} == {64}
    assert 0 in padded[0]["attention_mask"]


@pytest.mark.parametrize("length", [7, 513])
def test_length_that_the_encoder_does_not_take(length: int) -> None:
    with pytest.raises(InputError, match="max_length must lie between 8 and 512 tokens"):
        tokenize(load_official(DEMO, None), DEMO, load_tokenizer("minilm"), max_length=length)


@pytest.mark.parametrize(
    ("name", "positive"),
    # Shares of label 1 in the official training sets, counted with cut, sort and uniq.
    [("rte", 1241), ("mrpc", 2474), ("cola", 6023)],
)
def test_official_files(glue_data_dir: Path, name: str, positive: int, warnings_of: Any) -> None:
    official = load_official(TASKS[name], str(glue_data_dir))
    assert sum(official["train"]["label"]) == positive
    assert not warnings_of()  # neither on sizes
