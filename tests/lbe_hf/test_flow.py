"""The command `lbe-flow`, in this process and as a program."""

import importlib.util
import json
import os
import re
import string
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from lbe_hf.flow import main
from lbe_hf.flow_data import load_examples

ROWS = [("the cat sat", "a cat"), ("it rains", "the sun is out"), ('she said "no', "yes"), ("on", "on and on")]


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    lines = ["index\tsentence1\tsentence2\tlabel", *(f"{i}\t{a}\t{b}\tyes" for i, (a, b) in enumerate(ROWS))]
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def measured(model: str, data: Any, *arguments: Any) -> tuple[int, dict[str, Any]]:
    """Exit code, and what `--json` has."""
    path = Path(model).parent / "flow.json"
    code = main([model, "--data", str(data), "--json", str(path), *map(str, arguments)])
    return code, json.loads(path.read_text())


def entropies(record: dict[str, Any]) -> dict[str, float]:
    return {layer["name"]: layer["batch_entropy"] for layer in record["layers"]}


def test_texts_in_two_columns(tiny_encoder: str, tsv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, record = measured(tiny_encoder, tsv, "--text_columns", "sentence1", "sentence2")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    inputs = AutoTokenizer.from_pretrained(tiny_encoder)(
        [a for a, _ in ROWS], [b for _, b in ROWS], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    expected = [tiny.reference_entropy(state, inputs["attention_mask"]).item() for state in states]
    assert list(entropies(record).values()) == pytest.approx(expected, abs=1e-4)
    printed = capsys.readouterr().out
    assert printed.endswith("Healthy: every layer lets the signal through.\n")
    assert code == 0


def test_modules_and_columns_can_be_named(tiny_encoder: str, tsv: Path) -> None:
    _, first = measured(tiny_encoder, tsv, "--text_columns", "sentence1", "--target_modules", '["bert.pooler"]')
    _, second = measured(tiny_encoder, tsv, "--text_columns", "sentence2", "--target_modules", r"bert\.pooler")
    assert list(entropies(first)) == list(entropies(second)) == ["bert.pooler"]
    assert entropies(first) != entropies(second)


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet", "saved"])
def test_other_formats(suffix: str, tiny_encoder: str, tsv: Path, tmp_path: Path) -> None:
    columns = {"sentence1": [a for a, _ in ROWS], "sentence2": [b for _, b in ROWS]}
    data, path = Dataset.from_dict(columns), tmp_path / f"rows.{suffix}"
    {"csv": data.to_csv, "json": data.to_json, "parquet": data.to_parquet, "saved": data.save_to_disk}[suffix](path)
    _, record = measured(tiny_encoder, path)
    assert record == measured(tiny_encoder, tsv, "--text_columns", "sentence1", "sentence2")[1]


def test_a_folder_with_several_splits(
    tiny_encoder: str, tsv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Dataset.from_dict({"sentence1": [a for a, _ in ROWS]})
    DatasetDict({"validation": rows, "test": rows.select(range(3))}).save_to_disk(tmp_path / "splits")
    code, record = measured(tiny_encoder, tmp_path / "splits", "--split", "validation")
    assert (code, record) == measured(tiny_encoder, tsv, "--text_columns", "sentence1")
    missing = one_line([tiny_encoder, "--data", str(tmp_path / "splits")], capsys)
    assert "it has no split train, but validation, test: name one of them with --split." in missing


def test_a_fault_is_code_1_and_on_the_page(tiny_encoder: str, tsv: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight.zero_()
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "broken")
    page = tmp_path / "flow.html"
    code, record = measured(str(tmp_path / "broken"), tsv, "--html", page)
    assert code == 1
    assert [finding["kind"] for finding in record["findings"]] == ["collapsed"]
    assert record["findings"][0]["message"] in page.read_text(encoding="utf-8")


def test_a_causal_model(tiny_encoder: str, tsv: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **tiny.SHAPE)).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    code, record = measured(str(tmp_path / "llama"), tsv, "--samples", "token", "--batch_size", 1)
    assert code == 0
    assert len(record["layers"]) == 4


def test_a_batch_of_one_unknown_word_is_measured(tiny_encoder: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\nthe red lamp\n\u6f22\u5b57\n", encoding="utf-8")
    arguments = ["--text_columns", "text", "--samples", "token", "--batch_size", 1]
    code, record = measured(tiny_encoder, tmp_path / "rows.csv", *arguments)
    assert code in (0, 1)
    assert len(record["layers"]) == 3


def test_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**tiny.SHAPE, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    for index in range(8):
        folder = tmp_path / "images" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (20, 20, 3), dtype=torch.uint8).numpy()
        image.fromarray(pixels).save(folder / f"{index}.png")
    code, record = measured(str(tmp_path / "vit"), tmp_path / "images")
    assert code == 0
    assert len(record["layers"]) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sound(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        **tiny.SHAPE, conv_dim=[8, 8], conv_stride=[5, 4], conv_kernel=[10, 8], num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    Wav2Vec2ForSequenceClassification(config).to(dtype).save_pretrained(tmp_path / "speech")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "speech")
    sounds = tmp_path / "sounds.parquet"
    Dataset.from_dict({"audio": torch.randn(6, 800).tolist()}).to_parquet(sounds)
    code, record = measured(str(tmp_path / "speech"), sounds)
    assert code == 0
    assert len(record["layers"]) == 4


def test_a_folder_of_sound_files_is_read_or_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    for index in range(2):
        with wave.open(str(tmp_path / "sounds" / f"{index}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(bytes(1600))
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(ValueError, match=r"cannot be read: .*torchcodec"):
            load_examples(str(tmp_path / "sounds"), 2)
    else:
        assert len(load_examples(str(tmp_path / "sounds"), 2)) == 2


# ---- mistakes -------------------------------------------------------------------------------------------------------


def one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "rows.txt"], "rows.txt"),
        (["--data", "/nowhere/rows.tsv"], "does not exist"),
        (["--data", "no/such-data-set"], "no/such-data-set|Offline|offline"),
        (
            ["--data", "{tsv}", "--text_columns", "sentence"],
            "must name one or two of these columns: index, sentence1, sentence2, label",
        ),
        (
            ["--data", "{tsv}", "--text_columns", "3"],
            "must name one or two of these columns: index, sentence1, sentence2, label",
        ),
        (["--data", "{tsv}", "--target_modules", "poler"], "matches no module"),
        (["--data", "{tsv}", "--target_modules", '["pooler", 1]'], "not a JSON list of names"),
        (["--data", "{tsv}", "--target_modules", '["pooler'], "not a JSON list of names: Unterminated string"),
        (["--data", "{tsv}", "--json", "/nowhere/flow.json"], "The folder of /nowhere/flow.json does not exist"),
        (["--data", "{tsv}", "--batch_size", "1"], "two or more examples"),
        (["--data", "{folder}"], "has no images or audio"),
        (["--data", "{tsv}", "--target_modules", "["], "is not a regular expression"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: list[str], message: str, tiny_encoder: str, tsv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tsv.parent / "folder"
    empty.mkdir()
    argv = [argument.format(tsv=tsv, folder=empty) for argument in arguments]
    if "--text_columns" not in argv:
        argv += ["--text_columns", "sentence1"]
    assert re.search(message, one_line([tiny_encoder, *argv], capsys))


def test_models_that_cannot_be_used(
    tiny_encoder: str, tsv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["--data", str(tsv), "--text_columns", "sentence1"]
    assert "nowhere" in one_line(["/nowhere", *columns], capsys)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    model.save_pretrained(tmp_path / "bare")
    assert one_line([str(tmp_path / "bare"), *columns], capsys)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.digits]
    model.save_pretrained(tmp_path / "damaged")
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"damaged")
    assert "damaged" in one_line([str(tmp_path / "damaged"), *columns], capsys)
    model.save_pretrained(tmp_path / "other")
    BertTokenizerFast(vocab={token: index for index, token in enumerate(tokens)}).save_pretrained(tmp_path / "other")
    for more in ([], ["--samples", "token", "--batch_size", "1"]):
        assert "knows no token of the examples" in one_line([str(tmp_path / "other"), *columns, *more], capsys)


def test_weights_that_the_files_do_not_have(
    tiny_encoder: str, tsv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a model that was saved inside another: its weights would be random, and healthy."""
    columns = ["--data", str(tsv), "--text_columns", "sentence1"]
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder)
    state = model.state_dict()
    for folder, weights in {
        "renamed": {f"module.{name}": value for name, value in state.items()},
        "headless": {name: value for name, value in state.items() if not name.startswith("classifier")},
    }.items():
        model.save_pretrained(tmp_path / folder)
        AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / folder)
        save_file(weights, tmp_path / folder / "model.safetensors", {"format": "pt"})
    assert "have none of the weights" in one_line([str(tmp_path / "renamed"), *columns], capsys)
    assert main([str(tmp_path / "headless"), *columns]) == 0
    warning = capsys.readouterr().err
    assert warning.endswith("does not have these weights, which are random now: classifier.bias, classifier.weight\n")


def test_a_model_that_these_examples_do_not_fit(
    tiny_encoder: str, tsv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {**tiny.SHAPE, "num_attention_heads": 2}
    vision = {**size, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config={**size, "vocab_size": 90}, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "clip")
    assert "cannot be measured on" in one_line(
        [str(tmp_path / "clip"), "--data", str(tsv), "--text_columns", "sentence1"], capsys
    )


def test_an_encoder_without_a_head(tiny_encoder: str, tsv: Path, tmp_path: Path) -> None:
    AutoModel.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "encoder")
    assert measured(str(tmp_path / "encoder"), tsv, "--text_columns", "sentence1")[0] == 0


def test_files_that_cannot_be_used(tiny_encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fifo = tmp_path / "fifo.tsv"
    os.mkfifo(fifo)
    assert "neither a regular file nor a folder" in one_line([tiny_encoder, "--data", str(fifo)], capsys)
    latin = tmp_path / "latin.tsv"
    latin.write_bytes("text\ncaf\xe9\nth\xe9\n".encode("latin-1"))
    assert "utf-8" in one_line([tiny_encoder, "--data", str(latin)], capsys).lower()
    empty = tmp_path / "empty.tsv"
    empty.write_text("text\n")
    assert "empty.tsv" in one_line([tiny_encoder, "--data", str(empty)], capsys)
    nothing = tmp_path / "nothing.tsv"
    nothing.write_text("")
    assert one_line([tiny_encoder, "--data", str(nothing)], capsys)
    for text in ("null", "3", "", '[{"text": '):
        (tmp_path / "wrong.json").write_text(text)
        assert "wrong.json" in one_line([tiny_encoder, "--data", str(tmp_path / "wrong.json")], capsys)
    headerless = tmp_path / "headerless.tsv"
    headerless.write_text("0\ta b\tc d\tyes\n1\te f\tg h\tno\n")
    assert "a b" in one_line([tiny_encoder, "--data", str(headerless), "--text_columns", "3"], capsys)


def test_a_field_of_many_characters_is_read(tiny_encoder: str, tmp_path: Path) -> None:
    data = tmp_path / "long.tsv"
    data.write_text("text\n" + "a b " * 40_000 + "\nc d\n")
    assert measured(tiny_encoder, data)[0] == 0


def test_as_a_program(tiny_encoder: str, tsv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [tiny_encoder, "--data", str(tsv), "--text_columns", "sentence1"]
    script = Path(sys.executable).with_name("lbe-flow")
    done = subprocess.run([str(script), *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hidden_states[2]" in done.stdout
    assert done.stderr == ""
    with pytest.raises(SystemExit, match="2"):
        main([tiny_encoder, "--data"])
    assert capsys.readouterr().err == "error: argument --data: expected one argument (see --help)\n"
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--batch_size", "x"])
    assert "argument --batch_size: must be a whole number from 1 on, not x" in capsys.readouterr().err


def test_the_official_files(tiny_encoder: str, glue_data_dir: Path) -> None:
    data = glue_data_dir / "RTE" / "train.tsv"
    code, record = measured(tiny_encoder, data, "--text_columns", "sentence1", "sentence2", "--num_batches", "1")
    assert (code, len(record["layers"])) == (0, 3)
