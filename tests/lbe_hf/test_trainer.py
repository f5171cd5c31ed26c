"""The regularized loss, evaluation and prediction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny import assert_same, batch, bert, gradients, gradients_of_first_step, reference_loss, token_rows
from torch import nn
from transformers import (
    Trainer,
    TrainingArguments,
)

from lbe_hf import LBETrainer, LBETrainerMixin

Make = Callable[..., Any]


class Requests:
    """Counts how often the backbone of a classifier is called, and asked for hidden states."""

    def __init__(self, model: Any) -> None:
        self.asked = self.calls = 0
        model.base_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.calls += 1
        self.asked += bool(kwargs.get("output_hidden_states"))


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("beta", [0.05, 2.0])
def test_loss_and_gradients_are_the_formula(make_trainer: Make, beta: float) -> None:
    model, rows = bert(), token_rows(8)
    trainer = make_trainer(LBETrainer, model, rows, lbe_beta=beta, lbe_alpha=0.3)
    inputs = batch(rows)
    loss, ours, alpha_gradient = tiny.step(trainer, inputs)
    model.zero_grad()
    alpha = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
    expected, _ = reference_loss(model, inputs, alpha, beta)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same(ours, gradients(model), rtol=1e-4, atol=1e-7)
    assert alpha.grad is not None
    torch.testing.assert_close(alpha_gradient.double(), alpha.grad, rtol=1e-5, atol=1e-8)


def test_outputs_come_back_as_trainer_gives_them(make_trainer: Make) -> None:
    class Asking(Trainer):
        outputs: Any = None

        def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
            loss, self.outputs = super().compute_loss(model, inputs, **{**kwargs, "return_outputs": True})
            return loss

    class Both(LBETrainerMixin, Asking):
        pass

    trainer = make_trainer(Both, bert(), token_rows(8))
    loss, _, _ = tiny.step(trainer, batch(token_rows(8)))
    assert loss > trainer.outputs.loss
    assert list(trainer.outputs) == ["loss", "logits"]


def test_selected_layers_and_padding_kept(make_trainer: Make) -> None:
    model, rows = bert(), token_rows(8)
    trainer = make_trainer(LBETrainer, model, rows, lbe_beta=1.0, lbe_layers=[0, -1], lbe_ignore_padding=False)
    inputs = batch(rows)
    loss, _, _ = tiny.step(trainer, inputs)
    outputs = model(**inputs, output_hidden_states=True)
    entropies = [tiny.reference_entropy(outputs.hidden_states[index]) for index in (0, 3)]
    penalty = tiny.reference_penalty(entropies, torch.full((2,), 0.5), 0.2, beta=1.0)
    assert loss.item() == pytest.approx((outputs.loss * (1 + penalty)).item(), rel=1e-6)


def test_beta_zero_is_trainer_bit_for_bit(make_trainer: Make) -> None:
    rows = token_rows(20)
    runs = {}
    for cls in (Trainer, LBETrainer):
        model = bert(dropout=True)
        requests = Requests(model)
        trainer = make_trainer(cls, model, rows, lbe_beta=0.0, max_steps=5)
        runs[cls] = (gradients_of_first_step(trainer), dict(model.state_dict()), losses(trainer))
        assert requests.calls == 5
        assert requests.asked == 0
    assert_same(runs[Trainer][0], runs[LBETrainer][0])
    assert_same(runs[Trainer][1], runs[LBETrainer][1])
    assert runs[Trainer][2] == runs[LBETrainer][2]


def test_measuring_changes_nothing(make_trainer: Make) -> None:
    rows = token_rows(20)
    weights, logs = [], []
    for measure in (False, True):
        trainer = make_trainer(LBETrainer, bert(dropout=True), rows, lbe_beta=0.0, lbe_log_entropy=measure)
        trainer.train()
        weights.append(trainer.model.state_dict())
        logs.append(trainer.state.log_history[0])
    assert_same(*weights)
    assert "entropy/layer_00" not in logs[0]
    assert {f"entropy/layer_{index:02d}" for index in range(4)} <= logs[1].keys()
    assert logs[1]["lbe_loss"] == 0
    assert logs[1]["loss"] == logs[0]["loss"]


def test_plain_training_arguments_get_the_defaults(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), cls=TrainingArguments)
    trainer.train()
    assert trainer.lbe.beta == 0.01
    assert trainer.state.log_history[0]["lbe_loss"] > 0
    monkeypatch.chdir(tmp_path)  # without arguments, Trainer chooses a folder for itself
    assert LBETrainer(bert()).lbe.beta == 0.01


def test_penalty_moves_the_entropies_towards_their_targets(make_trainer: Make) -> None:
    means = []
    for beta in (0.0, 50.0):
        trainer = make_trainer(
            LBETrainer, bert(), token_rows(64), lbe_beta=beta, lbe_alpha=0.4, lbe_log_entropy=True, max_steps=40,
            per_device_train_batch_size=16, learning_rate=5e-3, lr_scheduler_type="constant",
        )  # fmt: skip
        trainer.train()
        means.append(trainer.state.log_history[39]["entropy_mean"])
    assert abs(means[1] - 0.4) < 0.5 * abs(means[0] - 0.4)


def test_mixes_with_other_trainers(make_trainer: Make) -> None:
    class Theirs(Trainer):
        def compute_loss(self, *args: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(*args, return_outputs=True, **kwargs)
            return (loss * 2, outputs) if return_outputs else loss * 2

    class Both(LBETrainerMixin, Theirs):
        pass

    rows = token_rows(8)
    single = make_trainer(LBETrainer, bert(), rows, learning_rate=0.0)
    double = make_trainer(Both, bert(), rows, learning_rate=0.0)
    single.train()
    double.train()
    assert losses(double) == pytest.approx([2 * loss for loss in losses(single)], rel=1e-6)


def test_loss_computed_past_the_regularization_is_refused(make_trainer: Make) -> None:
    class Weighted(LBETrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(**inputs).loss

    with pytest.raises(ValueError, match="compute_loss of Weighted does not call super"):
        make_trainer(Weighted, bert(), token_rows(8)).train()
    make_trainer(Weighted, bert(), token_rows(8), lbe_beta=0.0).train()


def test_evaluation_and_prediction_are_trainers(make_trainer: Make) -> None:
    rows, results = token_rows(10), []
    for cls in (Trainer, LBETrainer):
        model = bert()
        requests = Requests(model)
        seen: list[Any] = []

        def metrics(prediction: Any, seen: list[Any] = seen) -> dict[str, float]:
            seen.append(prediction.predictions)
            return {"positive": float(np.mean(prediction.predictions[:, 1]))}

        trainer = make_trainer(cls, model, rows, {"eval_dataset": rows, "compute_metrics": metrics}, lbe_beta=1.0)
        evaluated = trainer.evaluate()
        predicted = trainer.predict(rows)
        assert requests.asked == 0
        assert isinstance(predicted.predictions, np.ndarray)
        assert seen[0].shape == (10, 2)
        results.append((evaluated["eval_loss"], evaluated["eval_positive"], predicted.predictions))
    assert results[0][:2] == results[1][:2]
    np.testing.assert_array_equal(results[0][2], results[1][2])


def test_evaluation_between_steps(make_trainer: Make) -> None:
    model, rows = bert(), token_rows(12)
    requests = Requests(model)
    trainer = make_trainer(
        LBETrainer, model, rows, {"eval_dataset": rows}, eval_strategy="steps", eval_steps=1, max_steps=2
    )
    trainer.train()
    assert requests.asked == 2
    assert requests.calls == 2 + 2 * 2  # 12 rows in batches of 8
    assert all("entropy_mean" not in entry for entry in trainer.state.log_history if "eval_loss" in entry)
