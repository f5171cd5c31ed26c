"""Where the learnable targets are kept: in the checkpoints, and nowhere else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_same, bert, token_rows
from torch import Tensor
from transformers import AutoModelForSequenceClassification, TrainerCallback

from lbe_hf import LBETrainer
from lbe_hf.targets import TARGETS_NAME

Make = Callable[..., Any]

SETTINGS: dict[str, Any] = {
    "lbe_beta": 0.5,
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
}


def state(trainer: LBETrainer) -> dict[str, Tensor]:
    return {**trainer.model.state_dict(), "targets": trainer.lbe.alpha.detach()}


def test_targets_are_in_the_checkpoint_and_nowhere_else(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    saved = load_file(tmp_path / "run" / "checkpoint-6" / TARGETS_NAME)
    assert torch.equal(saved["alpha"], trainer.lbe.alpha)
    assert saved.keys() == {"alpha", "exp_avg", "exp_avg_sq", "step"}
    assert TARGETS_NAME not in os.listdir(tmp_path / "final")
    assert not any("lbe" in name or "alpha" in name for name in trainer.model.state_dict())
    assert "lbe" not in (tmp_path / "final" / "config.json").read_text()
    assert "hidden_states" not in (tmp_path / "final" / "config.json").read_text()
    optimized = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert id(trainer.lbe.alpha) not in optimized  # so it is neither weight-decayed nor clipped
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    assert_same(loaded.state_dict(), trainer.model.state_dict())


def test_beta_zero_saves_no_targets(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(LBETrainer, bert(), token_rows(16), **{**SETTINGS, "lbe_beta": 0.0}).train()
    assert TARGETS_NAME not in os.listdir(tmp_path / "run" / "checkpoint-6")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_run_ends_bit_for_bit_as_one_left_alone(make_trainer: Make, accumulation: int) -> None:
    settings = {**SETTINGS, "gradient_accumulation_steps": accumulation}
    rows = token_rows(18)  # ends in a batch of two rows
    whole = make_trainer(LBETrainer, bert(dropout=True), rows, **settings)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 5

    part = make_trainer(LBETrainer, bert(dropout=True), rows, {"callbacks": [Stop()]}, **settings)
    part.train()
    assert not torch.equal(part.lbe.alpha, whole.lbe.alpha)
    resumed = make_trainer(LBETrainer, bert(dropout=True), rows, **settings)
    resumed.train(resume_from_checkpoint=str(Path(part.args.output_dir) / "checkpoint-4"))
    assert_same(state(resumed), state(whole))


_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import tiny
from transformers import TrainerCallback
from lbe_hf import LBETrainer

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

tiny.torch.set_num_threads(1)
arguments = tiny.arguments(output_dir={output!r}, **{settings!r})
LBETrainer(tiny.bert(dropout=True), args=arguments, train_dataset=tiny.token_rows(18), callbacks=[Kill()]).train()
"""


def test_killed_run_ends_bit_for_bit_as_one_left_alone(make_trainer: Make, tmp_path: Path) -> None:
    whole = make_trainer(LBETrainer, bert(dropout=True), token_rows(18), **SETTINGS)
    whole.train()
    output, tests = str(tmp_path / "killed"), str(Path(tiny.__file__).parent)
    script = _KILLED.format(tests=tests, output=output, settings=SETTINGS)
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == -9
    resumed = make_trainer(LBETrainer, bert(dropout=True), token_rows(18), output_dir=output, **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert_same(state(resumed), state(whole))


def test_checkpoint_of_other_layers_is_refused(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS).train()
    trainer = make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS, lbe_layers=[0, -1])
    with pytest.raises(ValueError, match="4 layers have targets, but this batch has 2 activations"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))


def test_checkpoint_of_other_layers_of_the_same_number_is_refused(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS, lbe_layers=[0, 1]).train()
    trainer = make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS, lbe_layers=[1, 2])
    message = r"missing: hidden_states\[0\]; without a target: hidden_states\[2\]"
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    same = make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS, lbe_layers=[-4, -3])
    same.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))


def test_a_raised_floor_above_the_targets_of_the_checkpoint_is_refused(make_trainer: Make, tmp_path: Path) -> None:
    make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS).train()
    trainer = make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS, lbe_alpha=0.9, lbe_alpha_min=0.8)
    with pytest.raises(ValueError, match=r"would have no gradient .*resume with lbe_alpha_min=0.2"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))


def test_checkpoint_of_an_older_version_has_no_names(make_trainer: Make, tmp_path: Path) -> None:
    whole = make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS)
    whole.train()
    path = tmp_path / "run" / "checkpoint-4" / TARGETS_NAME
    save_file(load_file(path), path)
    resumed = make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS)
    resumed.train(resume_from_checkpoint=str(path.parent))
    assert_same(state(resumed), state(whole))


def test_files_that_are_missing_from_a_checkpoint_are_named(
    make_trainer: Make, tmp_path: Path, warnings_of: Any
) -> None:
    make_trainer(LBETrainer, bert(), token_rows(16), **SETTINGS).train()
    checkpoint, damaged = tmp_path / "run" / "checkpoint-4", tmp_path / "damaged"
    warnings: list[str] = []
    for missing in ((), ("optimizer.pt",), ("scheduler.pt",), ("rng_state.pth",), (TARGETS_NAME,)):
        shutil.copytree(checkpoint, damaged)
        for name in missing:
            (damaged / name).unlink()
        trainer = make_trainer(LBETrainer, bert(), token_rows(16), **{**SETTINGS, "save_strategy": "no"})
        trainer.train(resume_from_checkpoint=str(damaged))
        warnings += [f"{damaged} has no {name}: " for name in missing]
        found = [text for text in warnings_of() if "uninterrupted run" in text]
        assert len(found) == len(warnings)
        assert all(expected in text for expected, text in zip(warnings, found, strict=True))
        shutil.rmtree(damaged)


@pytest.mark.parametrize("save_only_model", [False, True])
def test_best_model_brings_its_targets(make_trainer: Make, tmp_path: Path, save_only_model: bool) -> None:
    scores = iter([0.1, 0.9, 0.2])  # the second checkpoint, of step 4, is the best
    rows = token_rows(16)
    trainer = make_trainer(
        LBETrainer, bert(), rows, {"eval_dataset": rows, "compute_metrics": lambda _: {"score": next(scores)}},
        **SETTINGS, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="score",
        save_only_model=save_only_model,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    best = load_file(tmp_path / "run" / "checkpoint-4" / TARGETS_NAME)["alpha"]
    last = load_file(tmp_path / "run" / "checkpoint-6" / TARGETS_NAME)["alpha"]
    assert not torch.equal(best, last)
    assert torch.equal(trainer.lbe.alpha, best)


def test_resume_of_a_model_that_does_not_say_how_many_layers_it_has(make_trainer: Make) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    generator = torch.Generator().manual_seed(0)
    rows = [
        {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": torch.tensor(index % 2)}
        for index in range(16)
    ]

    def model() -> Any:
        torch.manual_seed(0)
        return ResNetForImageClassification(
            ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
        )

    whole = make_trainer(LBETrainer, model(), rows, **SETTINGS)
    whole.train()
    assert len(whole.lbe.alpha) == 3
    resumed = make_trainer(LBETrainer, model(), rows, **SETTINGS)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-4"))
    assert_same(state(resumed), state(whole))
