"""What Trainer can do around a loss: accumulation, precision, compilation, checkpointing, adapters, searches."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from tiny import (
    InOrder,
    KeepGradients,
    assert_same,
    batch,
    bert,
    causal_rows,
    checkpointing,
    gradients_of_first_step,
    llama,
    token_rows,
)
from torch import Tensor, nn
from transformers import Trainer

from lbe_hf import LBESeq2SeqTrainer, LBESeq2SeqTrainingArguments, LBETrainer
from lbe_hf.target_modules import TargetModules

Make = Callable[..., Any]


def summed_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A `compute_loss_func` that normalizes by the items of the accumulated batch, as Trainer asks it to."""
    loss = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return loss / num_items_in_batch


# ---- Gradient accumulation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["classification", "regression", "label smoothing", "compute_loss_func", "tuple outputs"]
)
def test_accumulation_gives_the_gradient_of_one_batch(make_trainer: Make, case: str) -> None:
    if case == "label smoothing" and not tiny.NORMALIZES:
        pytest.skip("Trainer of this version of transformers does not normalize label smoothing")
    rows = token_rows(16, regression=case == "regression")
    settings: dict[str, Any] = {"label_smoothing_factor": 0.1} if case == "label smoothing" else {}
    extra = {"compute_loss_func": summed_loss} if case == "compute_loss_func" else {}
    config: dict[str, Any] = {"regression": {"num_labels": 1}, "tuple outputs": {"return_dict": False}}.get(case, {})
    steps = []
    for size, accumulation in ((16, 1), (4, 4)):
        trainer = make_trainer(
            LBETrainer, bert(**config), rows, extra, lbe_beta=0.0, max_steps=1, max_grad_norm=0.0,
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, **settings,
        )  # fmt: skip
        steps.append(gradients_of_first_step(trainer))
    assert_same(*steps, rtol=1e-4, atol=1e-7)


def test_causal_language_models_keep_the_normalization_by_tokens(make_trainer: Make) -> None:
    rows, steps = causal_rows(16), []
    for cls, size, accumulation in ((LBETrainer, 16, 1), (LBETrainer, 4, 4), (Trainer, 4, 4)):
        trainer = make_trainer(
            cls, llama(), rows, lbe_beta=0.0, max_steps=1, max_grad_norm=0.0, per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        steps.append(gradients_of_first_step(trainer))
    assert_same(steps[0], steps[1], rtol=1e-4, atol=1e-7)
    assert_same(steps[1], steps[2])


def test_targets_get_the_gradient_of_the_formula_under_accumulation_and_clipping(make_trainer: Make) -> None:
    rows, model = token_rows(16), bert()
    trainer = make_trainer(
        InOrder, model, rows, lbe_beta=0.7, lbe_alpha=0.3, gradient_accumulation_steps=4, max_steps=1,
        max_grad_norm=1e-4,
    )  # fmt: skip
    expected = torch.zeros(4, dtype=torch.float64)
    for start in range(0, 16, 4):
        alpha = torch.full((4,), 0.3, dtype=torch.float64, requires_grad=True)
        loss, _ = tiny.reference_loss(model, batch(rows[start : start + 4]), alpha, beta=0.7)
        (gradient,) = torch.autograd.grad(loss / 4, alpha)
        expected += gradient
    torch.testing.assert_close(alpha_gradient(trainer).double(), expected, rtol=1e-5, atol=1e-8)


def alpha_gradient(trainer: LBETrainer) -> Tensor:
    """Gradient that the optimizer of the targets gets in the first step."""
    seen: list[Tensor] = []

    def keep(*args: Any) -> None:
        assert trainer.lbe.alpha.grad is not None
        seen.append(trainer.lbe.alpha.grad.clone())

    trainer._lbe_targets.optimizer.register_step_pre_hook(keep)
    trainer.train()
    assert seen
    return seen[0]


def test_lbe_gradient_under_accumulation_is_the_mean_over_micro_batches(make_trainer: Make) -> None:
    rows, model = token_rows(8), bert()
    alpha = torch.full((4,), 0.5, dtype=torch.float64)
    (tiny.reference_loss(model, batch(rows[:4]), alpha, beta=2.0)[0] / 2).backward()
    (tiny.reference_loss(model, batch(rows[4:]), alpha, beta=2.0)[0] / 2).backward()
    expected = tiny.gradients(model)
    trainer = make_trainer(
        InOrder, bert(), rows, lbe_beta=2.0, gradient_accumulation_steps=2, max_steps=1, max_grad_norm=0.0,
    )  # fmt: skip
    assert_same(gradients_of_first_step(trainer), expected, rtol=1e-4, atol=1e-7)


def test_targets_move_as_adam_moves_them_and_follow_the_schedule(make_trainer: Make) -> None:
    settings = {"lbe_alpha": 0.3, "lbe_beta": 0.5}
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), learning_rate=1e-4, max_steps=2, **settings)
    rates: list[float] = []
    trainer._lbe_targets.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    trainer.train()
    assert rates == pytest.approx([1e-4, 5e-5])
    # Adam's first steps are as long as the learning rate, whatever the gradient; entropies lie above the targets.
    torch.testing.assert_close(trainer.lbe.alpha.data, torch.full((4,), 0.3 + 1.5e-4), rtol=0, atol=1e-6)
    own = make_trainer(LBETrainer, bert(), token_rows(8), lbe_alpha_learning_rate=0.1, max_steps=1, **settings)
    own.train()
    torch.testing.assert_close(own.lbe.alpha.data, torch.full((4,), 0.4), rtol=1e-3, atol=0)


# ---- Losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["regression", "label smoothing", "compute_loss_func", "tuple outputs", "causal language model"]
)
def test_every_kind_of_task_loss_is_multiplied(make_trainer: Make, case: str) -> None:
    rows = causal_rows(4) if case.startswith("causal") else token_rows(4, regression=case == "regression")
    settings: dict[str, Any] = {"label_smoothing_factor": 0.1} if case == "label smoothing" else {}
    extra = {"compute_loss_func": summed_loss} if case == "compute_loss_func" else {}
    config: dict[str, Any] = {"regression": {"num_labels": 1}, "tuple outputs": {"return_dict": False}}.get(case, {})
    logs = []
    for cls in (Trainer, LBETrainer):
        model = llama() if case.startswith("causal") else bert(**config)
        trainer = make_trainer(cls, model, rows, extra, lbe_beta=3.0, max_steps=1, **settings)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    states = (llama() if case.startswith("causal") else bert(**{**config, "return_dict": True}))(
        **batch(rows), output_hidden_states=True
    ).hidden_states
    entropies = [tiny.reference_entropy(state, batch(rows)["attention_mask"]) for state in states]
    penalty = tiny.reference_penalty(entropies, torch.full((4,), 0.5), 0.2, beta=3.0).item()
    assert logs[1]["task_loss"] == pytest.approx(logs[0]["loss"], rel=1e-5)
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"] * (1 + penalty), rel=1e-5)


# ---- Precision, compilation, activation checkpointing --------------------------------------------------------------


def test_a_batch_without_labels_does_no_harm(make_trainer: Make, warnings_of: Any) -> None:
    """Its loss is NaN and has a gradient of zero: with the penalty as a factor, all weights would become NaN."""
    torch.manual_seed(0)
    rows = causal_rows(12)
    for row in rows[4:8]:
        row["labels"].fill_(-100)
    trainer = make_trainer(InOrder, llama(), rows, lbe_beta=0.5)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "task_loss" in line]
    assert [line["loss"] > 0 for line in lines] == [True, False, True]  # Trainer logs 0 instead of NaN
    for line in lines:
        assert line["task_loss"] + line["lbe_loss"] == pytest.approx(line["loss"])
    assert all(weight.isfinite().all() for weight in (*trainer.model.parameters(), trainer.lbe.alpha))
    assert any("was not applied to 100% of the batches since the last log line" in text for text in warnings_of())


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("targets", [None, ["encoder.layer.1", "output.dense"]])
def test_activation_checkpointing_changes_no_gradient(
    make_trainer: Make, warnings_of: Any, use_reentrant: bool, targets: Any
) -> None:
    rows, steps = token_rows(8), []
    for settings in ({}, checkpointing(use_reentrant)):
        model = bert()
        if settings and use_reentrant:
            model.enable_input_require_grads()
        trainer = make_trainer(LBETrainer, model, rows, lbe_beta=5.0, lbe_target_modules=targets, **settings)
        steps.append(gradients_of_first_step(trainer))
    inside = [text for text in warnings_of() if "set use_reentrant=False" in text]
    if targets is not None and use_reentrant:
        # What a checkpointed block computes inside has no gradient there, and the user is told.
        assert "bert.encoder.layer.0.output.dense" in inside[0]
        assert "bert.encoder.layer.1," not in inside[0]
    else:
        assert not inside
        assert_same(*steps, rtol=1e-5, atol=1e-8)


def test_bf16(make_trainer: Make) -> None:
    logs = []
    for bf16 in (False, True):
        trainer = make_trainer(LBETrainer, bert(), token_rows(8), lbe_alpha=0.9, bf16=bf16, lbe_log_entropy=True)
        trainer.train()
        logs.append(trainer.state.log_history[0])
        assert trainer.lbe.alpha.dtype == torch.float32
    for key in ("loss", "lbe_loss", "entropy/layer_03"):
        assert logs[1][key] == pytest.approx(logs[0][key], rel=0.02)
        assert logs[1][key] != logs[0][key]


def test_fp16_targets_are_unscaled(make_trainer: Make) -> None:
    rows, model = token_rows(4), bert()
    trainer = make_trainer(LBETrainer, model, rows, lbe_beta=0.7, lbe_alpha=0.9, max_steps=1)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    trainer.accelerator.native_amp = True
    alpha = torch.full((4,), 0.9, dtype=torch.float64, requires_grad=True)
    loss, _ = tiny.reference_loss(model, batch(rows), alpha, beta=0.7)
    (expected,) = torch.autograd.grad(loss, alpha)
    torch.testing.assert_close(alpha_gradient(trainer).double(), expected, rtol=1e-5, atol=1e-8)


def test_fp16_overflow_leaves_the_targets_alone(make_trainer: Make) -> None:
    class Overflow(type(bert())):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.loss = outputs.loss * torch.inf
            return outputs

    trainer = make_trainer(
        LBETrainer, Overflow(bert().config), token_rows(4), max_steps=1, remove_unused_columns=False
    )
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer.accelerator.native_amp = True
    trainer.train()
    assert torch.equal(trainer.lbe.alpha.data, torch.full((4,), 0.5))


@pytest.mark.parametrize("targets", [None, ["output.dense"]])
def test_compiled(make_trainer: Make, targets: Any) -> None:
    rows, steps = token_rows(8), []
    for settings in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        torch._dynamo.reset()
        keeper = KeepGradients()
        trainer = make_trainer(
            LBETrainer, bert(), rows, {"callbacks": [keeper], "eval_dataset": rows}, lbe_beta=5.0,
            lbe_target_modules=targets, lbe_log_entropy=True, eval_strategy="steps", eval_steps=1, **settings,
        )  # fmt: skip
        trainer.train()
        steps.append((keeper.steps, [entry for entry in trainer.state.log_history if "loss" in entry]))
    for eager, compiled in zip(steps[0][0], steps[1][0], strict=True):
        assert_same(eager, compiled, rtol=1e-4, atol=1e-6)
    for eager, compiled in zip(steps[0][1], steps[1][1], strict=True):
        assert eager["entropy/layer_02"] == pytest.approx(compiled["entropy/layer_02"], rel=1e-4)


# ---- Adapters, batch size search, hyper-parameter search, repeated training ----------------------------------------


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft still asks for it
def test_lora(make_trainer: Make, tmp_path: Any, warnings_of: Any) -> None:
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file

    base = bert()
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(LBETrainer, model, token_rows(16), lbe_beta=5.0, gradient_accumulation_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved
    assert not any("lbe" in name or "alpha" in name for name in saved)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved
    assert all("lora" in name or "classifier" in name for name in moved)
    assert [text for text in warnings_of() if text.endswith(": hidden_states[0].")]
    # The penalty reaches the first adapter: with the task loss held constant there is a gradient left.
    inputs = batch(token_rows(4))
    name, weight = next((name, parameter) for name, parameter in model.named_parameters() if "lora_B" in name)
    trainer.current_gradient_accumulation_steps = 1
    loss, gradients, _ = tiny.step(trainer, inputs)
    task = model(**inputs).loss
    penalty = (loss / task - 1).item()
    (alone,) = torch.autograd.grad(task * (1 + penalty), weight)
    assert (gradients[name] - alone).abs().max() > 1e-3 * alone.abs().max()
    # Modules have the names that they have without the adapter.
    assert TargetModules(model, r"bert\.encoder\.layer\.\d+\.output\.dense").expected == 3


def test_batch_size_is_found_after_running_out_of_memory(make_trainer: Make) -> None:
    class Small(type(bert())):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
            if len(input_ids) > 4:
                self.attempts = getattr(self, "attempts", 0) + 1
                if self.attempts > 1:  # so that the first attempt leaves a micro-batch of gradients behind
                    raise RuntimeError("CUDA out of memory.")
            return super().forward(input_ids=input_ids, **kwargs)

    trainer = make_trainer(
        LBETrainer, Small(bert().config), token_rows(32), auto_find_batch_size=True, per_device_train_batch_size=8,
        gradient_accumulation_steps=2, remove_unused_columns=False, max_steps=3,
    )  # fmt: skip
    trainer.train()
    assert trainer._train_batch_size <= 4
    assert trainer.state.global_step == 3
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in logs:
        assert entry["task_loss"] + entry["lbe_loss"] == pytest.approx(entry["loss"], rel=1e-4)


def test_model_init_and_hyperparameter_search(tmp_path: Any) -> None:
    pytest.importorskip("optuna")
    used: list[tuple[float, float]] = []
    rows = token_rows(8)

    class Spy(LBETrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            if self.state.global_step == 0:
                used.append((self.lbe.beta, self.lbe.alpha[0].item()))
            return super().training_step(*args, **kwargs)

    trainer = Spy(
        model_init=lambda: bert(),
        args=tiny.arguments(output_dir=str(tmp_path), learning_rate=0.1),
        train_dataset=rows,
        eval_dataset=rows,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "lbe_beta": trial.suggest_float("lbe_beta", 0.1, 0.9),
            "lbe_alpha": trial.suggest_float("lbe_alpha", 0.3, 0.8),
        },
        n_trials=3,
        backend="optuna",
    )
    assert len(used) == 3
    assert len(set(used)) == 3  # each trial has its own settings, and starts from its own alpha
    assert (best.hyperparameters["lbe_beta"], pytest.approx(best.hyperparameters["lbe_alpha"])) in used


def test_second_training_goes_on_with_the_targets(make_trainer: Make) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), learning_rate=0.1, max_steps=1)
    trainer.train()
    first = trainer.lbe.alpha.detach().clone()
    assert not torch.equal(first, torch.full((4,), 0.5))
    trainer.train()
    assert not torch.equal(trainer.lbe.alpha, first)
    assert trainer._lbe_targets.optimizer.state[trainer.lbe.alpha]["step"] == 2
    # With model_init the model starts anew, and so do its targets.
    anew = LBETrainer(model_init=lambda: bert(), args=trainer.args, train_dataset=token_rows(8))
    ends = []
    for _ in range(2):
        anew.train()
        assert anew._lbe_targets.optimizer.state[anew.lbe.alpha]["step"] == 1
        ends.append(anew.lbe.alpha.detach().clone())
    assert torch.equal(*ends)


def test_sequence_to_sequence(make_trainer: Make) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=40, decoder_start_token_id=0)
    )
    rows = [{**row, "labels": row["input_ids"]} for row in token_rows(8)]
    trainer = make_trainer(
        LBESeq2SeqTrainer, model, rows, {"eval_dataset": rows}, cls=LBESeq2SeqTrainingArguments,
        predict_with_generate=True, generation_max_length=5,
    )  # fmt: skip
    trainer.train()
    assert len(trainer.lbe.alpha) == 6
    assert trainer.state.log_history[0]["lbe_loss"] > 0
    assert trainer.predict(rows).predictions.shape[0] == 8
