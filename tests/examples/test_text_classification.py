"""The example trains on generated sentences and on a CSV, and what it saves needs nothing of this package."""

import json
from pathlib import Path

import pandas as pd
import pytest
from programs import example
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

QUICK = "--max_steps 4 --logging_steps 2 --use_cpu --report_to none".split()


def test_generated_sentences_and_the_encoder_of_the_extra(tmp_path: Path) -> None:
    trainer = example("text_classification").main([*QUICK, "--max_steps", "12", "--output_dir", str(tmp_path)])
    lines = trainer.state.log_history
    assert any(line.get("lbe_loss", 0) > 0 for line in lines)
    assert any("flow/entropy_min" in line for line in lines)
    assert json.loads((tmp_path / "information_flow.json").read_text())
    assert "eval_accuracy" in trainer.evaluate()
    assert trainer.model.num_labels == 2
    assert len(trainer.train_dataset) == 4 * len(trainer.eval_dataset)


@pytest.mark.parametrize("named", [[], ["label"], ["question", "answer", "id"], ["missing"]])
def test_columns_are_not_guessed(named: list[str], tmp_path: Path) -> None:
    """The name of the label may stand in a column beside it."""
    csv = tmp_path / "mine.csv"
    pd.DataFrame({"label": ["a", "b"], "id": ["x", "y"], "question": "q", "answer": "a"}).to_csv(csv, index=False)
    arguments = ["--csv", str(csv), "--output_dir", str(tmp_path), *(["--text_columns", *named] if named else [])]
    with pytest.raises(
        SystemExit, match="one or two columns of text with --text_columns, out of id, question, answer"
    ):
        example("text_classification").main([*QUICK, *arguments])


@pytest.mark.parametrize("texts", [["text"], ["question", "answer"]])
def test_a_csv_of_the_users_own(texts: list[str], tmp_path: Path, tiny_encoder: str) -> None:
    labels = ["low", "None", "high"] * 20  # which pandas takes for missing
    columns = {name: [f"{label} {name}" for label in labels] for name in texts}
    csv, folder = tmp_path / "mine.csv", tmp_path / "out"
    pd.DataFrame({"label": labels, **columns}).to_csv(csv, index=False)
    arguments = ["--csv", str(csv), "--model", tiny_encoder, "--output_dir", str(folder)]
    arguments += ["--text_columns", *texts] if len(texts) > 1 else []
    trainer = example("text_classification").main([*QUICK, *arguments])
    text = trainer.processing_class.decode(trainer.eval_dataset[0]["input_ids"])
    assert text.count("[SEP]") == len(texts)
    assert trainer.train_dataset.num_rows == 48
    classify = pipeline(
        "text-classification",
        AutoModelForSequenceClassification.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        device="cpu",
    )
    assert classify("low text")[0]["label"] in labels
    assert trainer.model.config.id2label == {0: "None", 1: "high", 2: "low"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a file"),
        ("text,class\na,1\n", "must have a column label, beside text, class"),
        ("text,label\na,1\n,0\n", "has empty cells in text"),
        ("text,label\na,rare\nb,x\nc,x\nd,x\ne,x\n", "cannot be split: .*has only 1 member"),
    ],
)
def test_files_that_cannot_be_used(text: str | None, message: str, tmp_path: Path) -> None:
    csv = tmp_path / "rows.csv"
    if text is not None:
        csv.write_text(text)
    with pytest.raises(SystemExit, match=message):
        example("text_classification").main([*QUICK, "--csv", str(csv), "--output_dir", str(tmp_path)])
