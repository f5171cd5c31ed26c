import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from lbe_hf import LBEArguments, LBESeq2SeqTrainingArguments, LBETrainingArguments

SETTINGS = {
    "lbe_beta": 0.05,
    "lbe_alpha": 0.3,
    "lbe_alpha_min": 0.1,
    "lbe_alpha_learning_rate": 0.01,
    "lbe_form": "additive",
    "lbe_target_modules": ["output.dense", "pooler"],
    "lbe_layers": [0, -1],
    "lbe_samples": "token",
    "lbe_ignore_padding": False,
    "lbe_sync_batch": True,
    "lbe_log_entropy": True,
}


def settings_of(args: LBEArguments) -> dict[str, Any]:
    return {field.name: getattr(args, field.name) for field in fields(LBEArguments)}


@pytest.mark.parametrize("cls", [LBETrainingArguments, LBESeq2SeqTrainingArguments])
def test_parsed_from_the_command_line(cls: Any, tmp_path: Path) -> None:
    line = (
        f"--output_dir {tmp_path} --lbe_beta 0.05 --lbe_alpha 0.3 --lbe_alpha_min 0.1 --lbe_alpha_learning_rate 0.01 "
        "--lbe_form additive --lbe_layers 0 -1 --lbe_samples token --lbe_ignore_padding false --lbe_sync_batch "
        "--lbe_log_entropy"
    )
    modules = ["--lbe_target_modules", '["output.dense", "pooler"]']
    (args,) = HfArgumentParser(cls).parse_args_into_dataclasses([*line.split(), *modules])
    assert settings_of(args) == SETTINGS
    (args,) = HfArgumentParser(cls).parse_args_into_dataclasses(["--lbe_target_modules", r".*\.dense"])
    assert args.lbe_target_modules == r".*\.dense"


def test_parsed_from_json_and_written_back(tmp_path: Path) -> None:
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"output_dir": str(tmp_path), **SETTINGS}))
    (args,) = HfArgumentParser(LBETrainingArguments).parse_json_file(str(path))
    assert settings_of(args) == SETTINGS
    assert args.to_dict().items() >= SETTINGS.items()


def test_defaults_and_help_texts() -> None:
    defaults = settings_of(LBETrainingArguments())
    assert defaults == {
        "lbe_beta": 0.01,
        "lbe_alpha": 0.5,
        "lbe_alpha_min": 0.2,
        "lbe_alpha_learning_rate": None,
        "lbe_form": "product",
        "lbe_target_modules": None,
        "lbe_layers": None,
        "lbe_samples": "sequence",
        "lbe_ignore_padding": True,
        "lbe_sync_batch": False,
        "lbe_log_entropy": False,
    }
    assert all(len(field.metadata["help"]) > 20 for field in fields(LBEArguments))


def test_combines_with_any_arguments_class() -> None:
    @dataclass
    class Theirs(TrainingArguments):
        learning_rate: float = 7e-5

    @dataclass
    class Both(LBEArguments, Theirs):
        pass

    args = Both(lbe_beta=0.2, weight_decay=0.1)
    assert (args.lbe_beta, args.weight_decay, args.learning_rate) == (0.2, 0.1, 7e-5)
    assert args.device is not None  # the __post_init__ of the other class has run
    assert LBEArguments(lbe_alpha=0.3).lbe_alpha == 0.3


def test_integers_are_made_floats() -> None:
    """A hyper-parameter search casts its values to the type of what they replace."""
    args = LBETrainingArguments(lbe_beta=0, lbe_alpha=1, lbe_alpha_min=0)
    assert LBETrainingArguments(lbe_alpha_learning_rate="5e-5").lbe_alpha_learning_rate == 5e-5  # type: ignore[arg-type]
    assert {type(args.lbe_beta), type(args.lbe_alpha), type(args.lbe_alpha_min)} == {float}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lbe_beta": -0.01}, "lbe_beta must be zero or positive"),
        ({"lbe_alpha_min": -0.2}, "lbe_alpha_min must be zero or positive"),
        ({"lbe_alpha_learning_rate": -1.0}, "lbe_alpha_learning_rate must be zero or positive"),
        ({"lbe_alpha_learning_rate": float("nan")}, "lbe_alpha_learning_rate must be zero or positive, not nan"),
        ({"lbe_alpha_learning_rate": float("inf")}, "lbe_alpha_learning_rate must be zero or positive, not inf"),
        ({"lbe_alpha": 0.1}, "lbe_alpha must be at least alpha_min \\(0.2\\), not 0.1"),
        ({"lbe_form": "sum"}, "lbe_form must be one of"),
        ({"lbe_samples": "row"}, "lbe_samples must be one of"),
        ({"lbe_layers": []}, "lbe_layers must be a list of at least one index"),
        ({"lbe_layers": [1.0]}, "lbe_layers must be a list of at least one index"),
        ({"lbe_layers": 3}, "lbe_layers must be a list of at least one index"),
        ({"lbe_target_modules": "*.output"}, "is not a regular expression"),
        ({"lbe_target_modules": []}, "lbe_target_modules is empty"),
        ({"lbe_target_modules": [0, 1]}, "lbe_target_modules must be a regular expression or a list of names"),
        ({"lbe_target_modules": '["broken'}, "not a JSON list of names: Unterminated string"),
    ],
)
def test_refuses_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LBETrainingArguments(**changes)
