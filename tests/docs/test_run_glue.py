"""The change that the page shows, made to a script that uses `Trainer` in the ways in which `run_glue.py` does."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
from programs import ROOT

SCRIPT = """
import sys
from dataclasses import dataclass

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class ModelArguments:
    model_name_or_path: str


@dataclass
class DataTrainingArguments:
    train_file: str


parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
if sys.argv[1].endswith(".json"):
    model_args, data_args, args = parser.parse_json_file(json_file=sys.argv[1])
else:
    model_args, data_args, args = parser.parse_args_into_dataclasses()
tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
with args.main_process_first(desc="tokenizing"):
    examples = load_dataset("csv", data_files={"train": data_args.train_file})["train"].map(
        lambda batch: tokenizer(batch["sentence"], padding="max_length", max_length=12, truncation=True), batched=True
    )
trainer = Trainer(
    model=AutoModelForSequenceClassification.from_pretrained(model_args.model_name_or_path),
    args=args,
    train_dataset=examples if args.do_train else None,
    eval_dataset=examples if args.do_eval else None,
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())},
    processing_class=tokenizer,
    data_collator=default_data_collator,
)
if args.do_train:
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or get_last_checkpoint(args.output_dir))
    trainer.save_model()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
if args.do_eval:
    metrics = trainer.evaluate(eval_dataset=examples)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
if args.do_predict:
    predictions = trainer.predict(examples.remove_columns("label"), metric_key_prefix="predict").predictions
    assert predictions.shape == (len(examples), 2), predictions.shape
trainer.create_model_card(finetuned_from="me/base", tasks="text-classification", language="en", dataset_tags="glue",
                          dataset_args="rte", dataset="GLUE RTE")
"""


def changed(script: str) -> str:
    """The script after the change on the page: its lines with a minus go, the one with a plus follows the import."""
    page = (ROOT / "docs" / "run_glue.md").read_text(encoding="utf-8")
    diff = page.split("```diff\n")[1].split("```")[0].splitlines()
    gone = [line[1:] for line in diff if line.startswith("-")]
    (new,) = [line[1:] for line in diff if line.startswith("+")]
    lines = script.splitlines()
    assert [lines.count(line) for line in gone] == [1, 1]
    kept = [line for line in lines if line not in gone]
    kept.insert(kept.index(")") + 1, new)
    return "\n".join(kept) + "\n"


def test_two_names_are_swapped(tmp_path: Path, tiny_encoder: str) -> None:
    pd.DataFrame({"sentence": ["a good one", "a bad one"] * 8, "label": [1, 0] * 8}).to_csv(tmp_path / "a.csv")
    (tmp_path / "script.py").write_text(changed(SCRIPT), encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    settings = {
        "model_name_or_path": tiny_encoder, "train_file": str(tmp_path / "a.csv"), "output_dir": str(out),
        "do_train": True, "do_eval": True, "do_predict": True, "max_steps": 2, "save_steps": 2, "lbe_beta": 0.5,
        "lbe_target_modules": r".*\.layer\.\d+\.output\.dense|.*\.pooler", "logging_steps": 1, "use_cpu": True,
    }  # fmt: skip

    def run(*arguments: str) -> str:
        command = [sys.executable, str(tmp_path / "script.py"), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result.stdout

    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    assert "lbe_loss" in run(*arguments)
    assert "eval_accuracy" in json.loads((out / "all_results.json").read_text())
    assert "`lbe_beta` | 0.5" in (out / "README.md").read_text()
    assert (out / "checkpoint-2" / "lbe_targets.safetensors").is_file()
    assert not [name for name in json.loads((out / "config.json").read_text()) if "lbe" in name]
    (tmp_path / "arguments.json").write_text(json.dumps({**settings, "max_steps": 3}))
    run(str(tmp_path / "arguments.json"))  # resumes from the checkpoint
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    assert [line["step"] for line in state["log_history"] if "lbe_loss" in line] == [1, 2, 3]
