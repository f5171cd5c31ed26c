"""The regularized loss, evaluation, what is refused and what is logged."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from tiny import assert_same, batch, bert, gradients, gradients_of_first_step, reference_loss, token_rows
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lbe_hf import LBETrainer, LBETrainerMixin
from lbe_hf.moments import Plan
from lbe_hf.target_modules import TargetModules

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


# ---- The loss ------------------------------------------------------------------------------------------------------


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


# ---- Evaluation and prediction -------------------------------------------------------------------------------------


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


# ---- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lbe_layers": [0, 4]}, "names layer 4, but there are 4 activations"),
        ({"lbe_layers": [2], "lbe_target_modules": ["pooler"]}, "names layer 2, but there are 1 activations"),
        ({"lbe_target_modules": ["poler"]}, "nearest names are .*bert.pooler"),
    ],
)
def test_refused_at_construction(make_trainer: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(LBETrainer, bert(), token_rows(8), **settings)
    make_trainer(LBETrainer, bert(), token_rows(8), **settings, lbe_beta=0.0)  # nothing to refuse


def test_one_row_batches_are_refused_when_training_starts(make_trainer: Make) -> None:
    rows = token_rows(8)
    trainer = make_trainer(LBETrainer, bert(), rows, {"eval_dataset": rows}, per_device_train_batch_size=1)
    assert "eval_loss" in trainer.evaluate()
    with pytest.raises(ValueError, match="lbe_samples='token'"):
        trainer.train()


def test_one_row_batches_of_tokens(make_trainer: Make) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), per_device_train_batch_size=1, lbe_samples="token")
    trainer.train()
    assert trainer.state.log_history[0]["entropy_mean"] > 0


def test_data_parallel_is_refused(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"DataParallel.*accelerate launch"):
        make_trainer(LBETrainer, nn.DataParallel(bert()), token_rows(8)).train()
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match=r"DataParallel.*accelerate launch"):
        make_trainer(LBETrainer, bert(), token_rows(8)).train()


def test_fp16_of_deepspeed_is_refused(make_trainer: Make) -> None:
    class DeepSpeed(LBETrainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            self.is_deepspeed_enabled = True
            self.accelerator.state._mixed_precision = "fp16"

    try:
        with pytest.raises(ValueError, match=r"DeepSpeed scales the loss in fp16.*bf16"):
            make_trainer(DeepSpeed, bert(), token_rows(8)).train()
    finally:
        AcceleratorState._reset_state()


def test_layers_that_are_dropped_at_random_are_refused(make_trainer: Make) -> None:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(d_model=8, **heads, encoder_layers=1, decoder_layers=1, vocab_size=40, encoder_layerdrop=0.1)
    with pytest.raises(ValueError, match=r"set config.encoder_layerdrop to 0"):
        make_trainer(LBETrainer, BartForConditionalGeneration(config), token_rows(8))


def test_loss_computed_past_the_regularization_is_refused(make_trainer: Make) -> None:
    class Weighted(LBETrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(**inputs).loss

    with pytest.raises(ValueError, match="compute_loss of Weighted does not call super"):
        make_trainer(Weighted, bert(), token_rows(8)).train()
    make_trainer(Weighted, bert(), token_rows(8), lbe_beta=0.0).train()


def test_model_without_hidden_states(make_trainer: Make) -> None:
    class Silent(type(bert())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{**kwargs, "output_hidden_states": False})

    trainer = make_trainer(LBETrainer, Silent(bert().config), token_rows(8), remove_unused_columns=False)
    with pytest.raises(ValueError, match=r"returned no hidden states.*lbe_target_modules"):
        trainer.train()


# ---- What is warned of ---------------------------------------------------------------------------------------------


def test_last_batch_of_one_row_goes_without_the_penalty(make_trainer: Make, warnings_of: Any) -> None:
    rows = token_rows(9)
    trainer = make_trainer(LBETrainer, bert(), rows, max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert len([text for text in warnings_of() if "goes without the penalty" in text]) == 1
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == 6
    assert [("entropy_mean" in entry) for entry in history] == [True, True, False] * 2
    assert history[2]["task_loss"] == pytest.approx(history[2]["loss"], rel=1e-3)
    assert history[2]["lbe_loss"] == 0


def test_last_batch_of_one_row_with_a_module_that_has_no_positions(make_trainer: Make) -> None:
    trainer = make_trainer(
        LBETrainer, bert(), token_rows(9), lbe_target_modules=["layer.0", "pooler"], lbe_samples="token"
    )
    trainer.train()
    assert [("entropy_mean" in entry) for entry in trainer.state.log_history if "loss" in entry] == [True, True, False]


def test_batch_in_which_no_position_has_two_rows(make_trainer: Make, warnings_of: Any) -> None:
    rows = token_rows(2, length=4)
    rows[0]["attention_mask"] = torch.tensor([1, 1, 0, 0])
    rows[1]["attention_mask"] = torch.tensor([0, 0, 1, 1])
    model = bert()
    trainer = make_trainer(LBETrainer, model, rows, max_steps=2)
    trainer.train()
    assert len([text for text in warnings_of() if "goes without the penalty" in text]) == 1
    assert trainer.state.log_history[0]["lbe_loss"] == 0
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert torch.equal(trainer.lbe.alpha, torch.full((4,), 0.5))


class Convolution(nn.Module):
    """Returns a loss, knows no hidden states, and halves the length on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(tiny.VOCABULARY, 6)
        self.short = nn.Conv1d(6, 6, 2, stride=2)
        self.head = nn.Linear(6, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.short(self.embed(input_ids).transpose(1, 2)).relu().transpose(1, 2)
        logits = self.head(hidden.mean(1))
        return nn.functional.cross_entropy(logits, labels), logits


def test_activations_of_another_length_are_measured_unmasked(make_trainer: Make, warnings_of: Any) -> None:
    rows, model = token_rows(8), Convolution()
    trainer = make_trainer(LBETrainer, model, rows, lbe_target_modules=["embed", "short"], lbe_beta=1.0)
    inputs = batch(rows)
    loss, _, _ = tiny.step(trainer, inputs)
    with TargetModules(model, ["embed", "short"]).listen() as recording:
        task_loss, _ = model(**inputs)
    embedded, shortened = (activation.value for activation in recording.passes[0])
    entropies = [
        tiny.reference_entropy(embedded, inputs["attention_mask"]),
        tiny.reference_entropy(shortened),
    ]
    penalty = tiny.reference_penalty(entropies, torch.full((2,), 0.5), 0.2, beta=1.0)
    assert loss.item() == pytest.approx((task_loss * (1 + penalty)).item(), rel=1e-6)
    assert len([text for text in warnings_of() if "padding mask does not have the length" in text]) == 1


def test_any_module_that_returns_a_loss(make_trainer: Make) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="name the modules to regularize with lbe_target_modules"):
        make_trainer(LBETrainer, Convolution(), token_rows(8))
    trainer = make_trainer(LBETrainer, Convolution(), token_rows(8), lbe_target_modules=r"embed|short")
    trainer.train()
    assert len(trainer.lbe.alpha) == 2
    assert trainer.state.log_history[0]["lbe_loss"] > 0


def test_frozen_layers_are_named(make_trainer: Make, warnings_of: Any) -> None:
    model = bert()
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    make_trainer(LBETrainer, model, token_rows(8)).train()
    (text,) = [text for text in warnings_of() if "cannot train these layers" in text]
    assert text.endswith(": hidden_states[0].")


def test_a_layer_that_lets_nothing_through_is_named_once(make_trainer: Make, warnings_of: Any) -> None:
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight.zero_()
    make_trainer(LBETrainer, model, token_rows(8), learning_rate=0.0).train()
    (text,) = [text for text in warnings_of() if "have collapsed" in text]
    assert text.startswith("The last 2 of 4 layers have collapsed")  # what is constant stays so in the layer above
    assert text.endswith(": hidden_states[2], hidden_states[3]")


def test_module_without_rows_is_refused(make_trainer: Make) -> None:
    targets = ["position_embeddings", "pooler"]  # positions are looked up once for all rows
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), lbe_target_modules=targets)
    with pytest.raises(ValueError, match=r"one sample in a batch of several: bert.embeddings.position_embeddings"):
        trainer.train()


def test_number_of_activations_may_not_change_on_the_way(make_trainer: Make) -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(3, 3), 0

        def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor]:
            self.calls += 1
            for _ in range(1 + (self.calls > 2)):
                x = self.layer(x)
            return (x.square().mean() + 0 * labels.sum(),)

    rows = [{"x": torch.randn(3), "labels": torch.tensor(0.0)} for _ in range(8)]
    trainer = make_trainer(LBETrainer, Sometimes(), rows, lbe_target_modules=["layer"])
    with pytest.raises(ValueError, match="1 layers have targets, but this batch gave 2 activations"):
        trainer.train()


# ---- Logs ----------------------------------------------------------------------------------------------------------


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
