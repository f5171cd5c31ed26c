from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from glue_runs.data import load_splits, read_tsv, tokenize
from glue_runs.encoder import _minilm_path
from glue_runs.tasks import TASKS, InputError

RTE = "index\tsentence1\tsentence2\tlabel\n"


def write(folder: Path, train: str, dev: str = RTE + '0\tA "b\tC.\tentailment\n') -> Path:
    (folder / "RTE").mkdir()
    (folder / "RTE" / "train.tsv").write_text(train, encoding="utf-8")
    (folder / "RTE" / "dev.tsv").write_text(dev, encoding="utf-8")
    return folder


def test_quotation_marks_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, RTE + '0\tHe said "no.\t"Yes" it is.\tnot_entailment\n') / "RTE" / "train.tsv"
    assert read_tsv(path, TASKS["rte"]) == [
        {"sentence1": 'He said "no.', "sentence2": '"Yes" it is.', "label": 1, "idx": 0}
    ]


def test_byte_order_mark_and_missing_header(tmp_path: Path) -> None:
    mrpc, cola = tmp_path / "mrpc.tsv", tmp_path / "cola.tsv"
    mrpc.write_bytes("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tA b\tC d\r\n".encode())
    cola.write_text("gj04\t1\t\tThe ropes stretched.\nbc01\t0\t*\tRopes the.\n")
    assert read_tsv(mrpc, TASKS["mrpc"]) == [{"sentence1": "A b", "sentence2": "C d", "label": 1, "idx": 0}]
    assert [(row["sentence"], row["label"]) for row in read_tsv(cola, TASKS["cola"])] == [
        ("The ropes stretched.", 1),
        ("Ropes the.", 0),
    ]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (RTE + "0\ta\tb\tentailment\n1\ta\tentailment\n", r"train.tsv, line 3: 3 columns, expected 4"),
        (RTE + "0\ta\tb\tmaybe\n", r"line 2: label 'maybe' is none of entailment, not_entailment"),
        (RTE, "has no rows"),
        ("", "has no rows"),
    ],
)
def test_malformed_files(tmp_path: Path, train: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_splits(TASKS["rte"], str(write(tmp_path, train)))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"RTE/train.tsv cannot be read .*--data_dir is the folder above"):
        load_splits(TASKS["rte"], str(tmp_path))


def test_not_text(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / "RTE" / "train.tsv").write_bytes(b"index\t\xff\xfe\n")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_splits(TASKS["rte"], str(tmp_path))


def test_hub_out_of_reach() -> None:
    with pytest.raises(InputError, match=r"nyu-mll/glue cannot be loaded .* pass the folder .* as --data_dir"):
        load_splits(TASKS["rte"], None)


def test_row_counts_that_differ_are_said(tmp_path: Path, warnings_of: Any) -> None:
    load_splits(TASKS["rte"], str(write(tmp_path, RTE + "0\ta\tb\tentailment\n1\tc\td\tentailment\n")), 0.5)
    assert "rte has 2 train rows here, officially 2490." in warnings_of()
    assert "rte has 1 validation rows here, officially 277." in warnings_of()


def test_split_is_that_of_its_seed() -> None:
    task = TASKS["demo_rte"]
    first, again, other = (load_splits(task, None, split_seed=seed) for seed in (0, 0, 1))
    assert {name: len(rows) for name, rows in first.items()} == {"train": 640, "validation": 160, "test": 200}
    assert first["validation"]["idx"] == again["validation"]["idx"]
    assert first["validation"]["idx"] != other["validation"]["idx"]
    assert sorted([*first["train"]["idx"], *first["validation"]["idx"]]) == list(range(800))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(InputError, match="validation_fraction must lie between 0 and 1"):
        load_splits(TASKS["demo_rte"], None, fraction)


def test_tokens_are_cut_and_not_padded() -> None:
    tokenizer = AutoTokenizer.from_pretrained(_minilm_path())
    splits = tokenize(load_splits(TASKS["demo_rte"], None), TASKS["demo_rte"], tokenizer, max_length=24)
    assert set(splits["train"].column_names) == {"input_ids", "token_type_ids", "attention_mask", "label"}
    lengths = {len(ids) for ids in splits["train"]["input_ids"]}
    assert max(lengths) == 24
    assert len(lengths) > 1


@pytest.mark.parametrize(
    ("name", "positive"),
    # Shares of label 1 in the official training sets, counted with cut, sort and uniq.
    [("rte", 1241), ("mrpc", 2474), ("cola", 6023)],
)
def test_official_files(glue_data_dir: Path, name: str, positive: int, warnings_of: Any) -> None:
    task = TASKS[name]
    splits = load_splits(task, str(glue_data_dir))
    assert len(splits["test"]) == task.validation_rows
    assert len(splits["train"]) + len(splits["validation"]) == task.train_rows
    assert sum(splits["train"]["label"]) + sum(splits["validation"]["label"]) == positive
    assert not warnings_of()
