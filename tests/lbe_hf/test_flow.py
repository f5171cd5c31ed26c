import re
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lbe_hf.flow import main

pytest.importorskip("matplotlib")

import matplotlib.image

ROWS = [("the cat sat", "a cat"), ("it rains", "the sun is out"), ('she said "no', "yes"), ("on", "on and on")]


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    lines = ["index\tsentence1\tsentence2\tlabel", *(f"{i}\t{a}\t{b}\tyes" for i, (a, b) in enumerate(ROWS))]
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def entropies(printed: str) -> dict[str, float]:
    lines = [line.split() for line in printed.splitlines() if line.startswith(("hidden_states", "bert."))]
    return {name: float(value) for name, value in lines}


def test_it_prints_and_draws_each_layer(
    tiny_encoder: str, tsv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "flow.png"
    assert main(["--model_name_or_path", tiny_encoder, "--data_file", str(tsv), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    inputs = AutoTokenizer.from_pretrained(tiny_encoder)(
        [a for a, _ in ROWS], [b for _, b in ROWS], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    expected = [tiny.reference_entropy(state, inputs["attention_mask"]).item() for state in states]
    assert list(entropies(printed).values()) == pytest.approx(expected, abs=1e-4)
    assert "Every layer lets something through." in printed
    assert matplotlib.image.imread(picture).ndim == 3


def test_modules_and_columns_can_be_named(
    tiny_encoder: str, tsv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model_name_or_path", tiny_encoder, "--data_file", str(tsv), "--picture", str(tmp_path / "flow.png")]
    assert main([*common, "--text_columns", "sentence1", "--target_modules", '["bert.pooler"]']) == 0
    first = entropies(capsys.readouterr().out)
    assert main([*common, "--text_columns", "sentence2", "--target_modules", r"bert\.pooler"]) == 0
    second = entropies(capsys.readouterr().out)
    assert list(first) == list(second) == ["bert.pooler"]
    assert first != second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task_name", "rte"], "nyu-mll/glue cannot be loaded .* as --data_file"),
        (["--data_file", "rows.txt"], "none of .tsv, .csv"),
        (["--data_file", "{tsv}", "--text_columns", "sentence"], "--text_columns: index, sentence1, sentence2, label"),
        (["--data_file", "{tsv}", "--target_modules", "poler"], "matches no module"),
        (["--data_file", "{tsv}", "--model_name_or_path", "/nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: list[str], message: str, tiny_encoder: str, tsv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model_name_or_path", tiny_encoder, *(argument.format(tsv=tsv) for argument in arguments)]
    assert main(argv) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last)


def test_the_official_files(
    tiny_encoder: str, glue_data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = glue_data_dir / "RTE" / "train.tsv"
    arguments = ["--data_file", str(file), "--num_batches", "1", "--picture", str(tmp_path / "flow.png")]
    assert main(["--model_name_or_path", tiny_encoder, *arguments]) == 0
    assert len(entropies(capsys.readouterr().out)) == 3
