"""Log lines and warnings of a run."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import bert, token_rows
from torch import Tensor
from transformers import (
    TrainerCallback,
)

from lbe_hf import LBETrainer
from lbe_hf.moments import Plan
from lbe_hf.monitor import Means
from lbe_hf.regularizer import LBERegularizer
from lbe_hf.reporting import Reporter

Make = Callable[..., Any]


class Tracker(TrainerCallback):
    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def test_logs_are_means_over_steps_and_reach_the_trackers(make_trainer: Make) -> None:
    rows, tracker = token_rows(16), Tracker()
    settings = {"lbe_log_entropy": True, "lbe_beta": 0.3, "max_steps": 4, "learning_rate": 0.0}
    every = make_trainer(LBETrainer, bert(), rows, **settings)
    every.train()
    single = [entry for entry in every.state.log_history if "loss" in entry]
    rare = make_trainer(LBETrainer, bert(), rows, {"callbacks": [tracker]}, **{**settings, "logging_steps": 2})
    rare.train()
    keys = {"task_loss", "lbe_loss", "entropy_mean", "entropy_min", "entropy_last", "alpha_mean"}
    keys |= {f"entropy/layer_{index:02d}" for index in range(4)}
    assert keys <= tracker.logs[0].keys()
    assert "train_loss" in tracker.logs[-1]
    for step in (0, 1):
        pair = single[2 * step : 2 * step + 2]
        for key in keys - {"entropy_min", "entropy_mean"}:
            assert tracker.logs[step][key] == pytest.approx((pair[0][key] + pair[1][key]) / 2, rel=1e-5)
        entropies = [tracker.logs[step][f"entropy/layer_{index:02d}"] for index in range(4)]
        assert tracker.logs[step]["entropy_min"] == min(entropies)
        assert tracker.logs[step]["entropy_mean"] == pytest.approx(sum(entropies) / 4)
        assert tracker.logs[step]["entropy_last"] == entropies[-1]


def test_targets_are_logged_beside_the_entropies(make_trainer: Make) -> None:
    rows = token_rows(12)
    logs = {}
    for beta in (0.0, 5.0):
        trainer = make_trainer(
            LBETrainer, bert(), rows, lbe_beta=beta, lbe_log_entropy=True, lbe_alpha_learning_rate=0.1
        )
        trainer.train()
        logs[beta] = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    names = [f"target/layer_{index:02d}" for index in range(4)]
    assert not [name for name in names if name in logs[0.0]]
    assert [logs[5.0][name] for name in names] == pytest.approx(trainer.lbe.target.tolist())
    assert trainer.lbe.target.tolist() != pytest.approx([0.5] * 4, abs=0.01)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_task_loss_and_lbe_loss_add_up_to_the_loss(make_trainer: Make, accumulation: int) -> None:
    trainer = make_trainer(
        LBETrainer, bert(dropout=True), token_rows(17), lbe_beta=0.5, gradient_accumulation_steps=accumulation,
        logging_steps=2, max_steps=4,
    )  # fmt: skip
    trainer.train()
    for entry in (entry for entry in trainer.state.log_history if "loss" in entry):
        assert entry["task_loss"] + entry["lbe_loss"] == pytest.approx(entry["loss"], rel=1e-4)


def test_the_device_is_read_only_when_logging(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    trainer = make_trainer(LBETrainer, bert(), token_rows(16), max_steps=4, logging_steps=4)
    step, inside = trainer.training_step, [False]

    def training_step(*args: Any, **kwargs: Any) -> Tensor:
        inside[0] = True
        try:
            result: Tensor = step(*args, **kwargs)
            return result
        finally:
            inside[0] = False

    monkeypatch.setattr(trainer, "training_step", training_step)
    blocks = Plan.blocks

    def on_the_host(self: Any, x: Tensor) -> Any:
        """On a CPU the mask is on the host, where asking it costs nothing."""
        was, inside[0] = inside[0], False
        found = list(blocks(self, x))
        inside[0] = was
        return iter(found)

    monkeypatch.setattr(Plan, "blocks", on_the_host)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        method = getattr(Tensor, name)

        def spy(self: Tensor, *args: Any, name: str = name, method: Any = method, **kwargs: Any) -> Any:
            # BERT looks whether anything is masked, and Adam counts its steps on the host: neither is ours.
            caller = sys._getframe(1).f_code.co_filename
            if inside[0] and "transformers" not in caller and "torch/optim" not in caller:
                reads.append(name)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, spy)
    trainer.train()
    assert not reads


def test_a_layer_that_lets_nothing_through_is_named_once(make_trainer: Make, warnings_of: Any) -> None:
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight.zero_()
    make_trainer(LBETrainer, model, token_rows(8), learning_rate=0.0).train()
    (text,) = [text for text in warnings_of() if "they have collapsed, or the scale" in text]
    assert text.startswith("The last 2 of 4 layers")  # what is constant stays so in the layer above
    assert text.endswith(": hidden_states[2], hidden_states[3]")


def test_only_the_first_process_warns_of_collapsed_layers(warnings_of: Any) -> None:
    means = Means(task_loss=1.0, lbe_loss=0.1, unmeasured=0.0, skipped=0.0, entropies=[0.5, 0.0])
    for prints, warnings in ((False, 0), (True, 1)):
        Reporter(prints).log_line(means, LBERegularizer(2), ["lower", "upper"], each_layer=False)
        assert (
            len([text for text in warnings_of() if text.endswith("information_flow tells which. New: upper")])
            == warnings
        )


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_run_whose_loss_is_not_finite_is_not_told_that_its_penalty_was_small(loss: float, warnings_of: Any) -> None:
    means = Means(task_loss=loss, lbe_loss=loss, unmeasured=0.0, skipped=0.0, entropies=[0.5])
    Reporter(prints=True).end(means, LBERegularizer(1))
    assert warnings_of() == []
