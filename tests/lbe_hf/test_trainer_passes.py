"""Which forward passes are regularized, what `compute_loss` hands on, and where training is stopped."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import others
import pytest
import tiny
import torch
from tiny import assert_same, batch, bert, token_rows
from torch import Tensor, nn
from transformers import BatchEncoding, BertForTokenClassification, Trainer

from lbe_hf import LBETrainer, LBETrainerMixin

Make = Callable[..., Any]


def penalty_of(model: Any, inputs: dict[str, Tensor], beta: float = 1.0) -> Tensor:
    states = model(**inputs, output_hidden_states=True).hidden_states
    entropies = [tiny.reference_entropy(state, inputs["attention_mask"]) for state in states]
    return tiny.reference_penalty(entropies, torch.full((len(states),), 0.5), 0.2, beta)


# ---- What is handed on ---------------------------------------------------------------------------------------------


def test_compute_loss_hands_on_what_it_is_given(make_trainer: Make) -> None:
    seen: list[Any] = []

    class Theirs(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            return super().compute_loss(*args, **kwargs)

    class Both(LBETrainerMixin, Theirs):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return inputs

    trainer = make_trainer(Both, bert(), token_rows(4), lbe_beta=1.0)
    inputs = BatchEncoding(batch(token_rows(4)))
    keys = set(inputs)
    items = torch.tensor(4)
    loss = trainer.training_step(trainer.model, inputs, items)
    ((model, given), kwargs) = seen[0]
    assert model is trainer.model
    assert given is inputs
    assert set(inputs) == keys
    assert kwargs.keys() == {"num_items_in_batch"}
    assert kwargs["num_items_in_batch"] is items
    task_loss = trainer.model(**inputs).loss
    assert loss.item() == pytest.approx((task_loss * (1 + penalty_of(trainer.model, dict(inputs)))).item(), rel=1e-5)


def test_inspection_shows_the_parameters_of_the_trainer() -> None:
    for cls, theirs in ((LBETrainer, Trainer), (others.LBESFTTrainer, others.SFTTrainer)):
        assert inspect.signature(cls) == inspect.signature(theirs)
        for name in ("__init__", "training_step", "create_optimizer", "log", "train", "compute_loss"):
            assert inspect.signature(getattr(cls, name)) == inspect.signature(getattr(theirs, name)), name

    class Before(Trainer):
        def training_step(self, *args: Any, extra: int = 3, **kwargs: Any) -> Tensor:
            return super().training_step(*args, **kwargs)

    class After(LBETrainer):
        def training_step(self, *args: Any, after: int = 3, **kwargs: Any) -> Tensor:
            return super().training_step(*args, **kwargs)

    class Both(LBETrainerMixin, Before):
        pass

    assert "extra" in inspect.signature(Both.training_step).parameters
    assert "after" in inspect.signature(After.training_step).parameters
    assert LBETrainer.training_step.__doc__ == LBETrainerMixin.training_step.__doc__


# ---- Which passes count --------------------------------------------------------------------------------------------


def test_several_passes_share_one_target_each_by_its_own_mask(make_trainer: Make) -> None:
    """As in R-Drop, and with one pass for each half of the batch."""

    class Halves(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            parts = [{key: value[index] for key, value in inputs.items()} for index in (slice(4), slice(4, None))]
            return sum(model(**part).loss for part in parts)

    class Both(LBETrainerMixin, Halves):
        pass

    rows, model = token_rows(8), bert()
    trainer = make_trainer(Both, model, rows, lbe_beta=1.0)
    loss, ours, alpha_gradient = tiny.step(trainer, batch(rows))
    model.zero_grad()
    parts = [batch(rows[:4]), batch(rows[4:])]
    outputs = [model(**part, output_hidden_states=True) for part in parts]
    alpha = torch.full((4,), 0.5, dtype=torch.float64, requires_grad=True)
    entropies = [
        sum(
            tiny.reference_entropy(output.hidden_states[layer], part["attention_mask"])
            for output, part in zip(outputs, parts, strict=True)
        )
        / 2
        for layer in range(4)
    ]
    expected = (outputs[0].loss + outputs[1].loss) * (1 + tiny.reference_penalty(entropies, alpha, 0.2, beta=1.0))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same(ours, tiny.gradients(model), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(alpha_gradient.double(), alpha.grad, rtol=1e-5, atol=1e-8)


def test_metrics_under_no_grad_do_not_count(make_trainer: Make) -> None:
    class Watching(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                model(**{key: value.flip(0) for key, value in inputs.items()})
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            with torch.no_grad():
                model(**inputs)
            return loss

    class Both(LBETrainerMixin, Watching):
        pass

    results = []
    for cls in (LBETrainer, Both):
        for targets in (None, ["output.dense"]):
            trainer = make_trainer(cls, bert(), token_rows(8), lbe_beta=1.0, lbe_target_modules=targets)
            results.append(tiny.step(trainer, batch(token_rows(8))))
    for ours, theirs in ((results[0], results[2]), (results[1], results[3])):
        assert ours[0] == theirs[0]
        assert_same(ours[1], theirs[1])


def test_prediction_on_a_model_in_training_mode_is_trainers(make_trainer: Make) -> None:
    losses = []
    for cls in (Trainer, LBETrainer):
        trainer = make_trainer(cls, bert(), token_rows(8), lbe_beta=5.0)
        trainer.model.train()
        losses.append(trainer.prediction_step(trainer.model, batch(token_rows(8)), prediction_loss_only=True)[0])
        with torch.enable_grad():
            losses.append(trainer.compute_loss(trainer.model, batch(token_rows(8))).detach())
    assert losses[0] == losses[2]
    assert losses[1] == losses[3]


def test_a_model_that_keeps_itself_in_evaluation_mode(make_trainer: Make) -> None:
    class Still(type(bert())):  # type: ignore[misc]
        def train(self, mode: bool = True) -> Any:
            return super().train(False)

    ours = tiny.step(make_trainer(LBETrainer, Still(bert().config), token_rows(8), lbe_beta=1.0), batch(token_rows(8)))
    torch.manual_seed(0)
    model = Still(bert().config)
    trainer = make_trainer(LBETrainer, model, token_rows(8), lbe_beta=1.0)
    trainer.train()
    assert trainer.state.log_history[0]["lbe_loss"] > 0
    assert ours[0] > 0


def test_training_step_outside_a_training(make_trainer: Make) -> None:
    rows = token_rows(4)
    trainer = make_trainer(LBETrainer, bert(), rows, learning_rate=0.25, lbe_beta=1.0)
    trainer.training_step(trainer.model, batch(rows))
    moved = (trainer.lbe.alpha - 0.5).abs()
    torch.testing.assert_close(moved.detach(), torch.full((4,), 0.25), rtol=1e-3, atol=0)  # Adam's first step


def test_model_replaced_after_construction(make_trainer: Make) -> None:
    for targets in (None, ["output.dense"]):
        trainer = make_trainer(LBETrainer, bert(), token_rows(8), lbe_beta=1.0, lbe_target_modules=targets)
        models = [trainer.model, bert(dropout=True)]
        trainer.model = trainer.model_wrapped = models[1]
        trainer.train()
        assert trainer.state.log_history[0]["lbe_loss"] > 0
        for model in models:
            assert "forward" not in vars(model)
            assert not model.bert.encoder.layer[0].output.dense._forward_hooks


# ---- Never silently dead -------------------------------------------------------------------------------------------


def test_nothing_to_train_stops_training(make_trainer: Make) -> None:
    model = bert()
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"Nothing would be regularized: .*frozen.*hidden_states\[0\]"):
        make_trainer(LBETrainer, model, token_rows(8)).train()
    model.enable_input_require_grads()  # now there are gradients, which reach no parameter
    with pytest.raises(ValueError, match="Nothing would be regularized"):
        make_trainer(LBETrainer, model, token_rows(8)).train()
    make_trainer(LBETrainer, model, token_rows(8), lbe_beta=0.0, lbe_log_entropy=True).train()


def test_everything_inside_reentrant_checkpointing_stops_training(make_trainer: Make) -> None:
    model = bert()
    model.enable_input_require_grads()
    trainer = make_trainer(
        LBETrainer, model, token_rows(8), lbe_target_modules=["output.dense"], **tiny.checkpointing(True)
    )
    with pytest.raises(ValueError, match=r"Nothing would be regularized: .*use_reentrant=False"):
        trainer.train()


def test_loss_without_the_model_stops_training(make_trainer: Make) -> None:
    class Elsewhere(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model.classifier.weight.square().sum()

    class Both(LBETrainerMixin, Elsewhere):
        pass

    with pytest.raises(ValueError, match="BertForSequenceClassification was not called as a whole"):
        make_trainer(Both, bert(), token_rows(8)).train()
    with pytest.raises(ValueError, match="called none of the modules"):
        make_trainer(Both, bert(), token_rows(8), lbe_target_modules=["pooler"]).train()


def test_losses_that_cache_gradients_are_refused(tmp_path: Any) -> None:
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MatryoshkaLoss,
        MultipleNegativesRankingLoss,
    )

    case = others.CASES["SentenceTransformerTrainer"]
    made = case.make(tmp_path)
    made["train_dataset"] = made["train_dataset"].remove_columns("score")

    def trainer(loss: Any, **arguments: Any) -> Any:
        kept = {**made, "loss": loss}
        return others.Case(case.regularized, case.arguments, lambda folder: kept, case.by_hand).trainer(
            tmp_path, **arguments
        )

    cached = CachedMultipleNegativesRankingLoss(made["model"], mini_batch_size=2)
    message = "CachedMultipleNegativesRankingLoss .* use MultipleNegativesRankingLoss instead"
    for loss in (cached, MatryoshkaLoss(made["model"], cached, [16, 8])):
        with pytest.raises(ValueError, match=message):
            trainer(loss).train()
    trainer(cached, lbe_beta=0.0, max_steps=1).train()
    trainer(MultipleNegativesRankingLoss(made["model"]), max_steps=1).train()

    class Hidden(nn.Module):
        """A loss that caches gradients and does not tell."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = [cached]

        def forward(self, features: Any, labels: Any) -> Tensor:
            result: Tensor = self.inner[0](features, labels)
            return result

    with pytest.raises(ValueError, match=r"calls \w+ only with gradients disabled.*does not cache gradients"):
        trainer(Hidden()).train()


def test_training_step_that_does_not_call_super_stops_training(make_trainer: Make) -> None:
    class Own(LBETrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss = self.compute_loss(model, inputs)
            self.accelerator.backward(loss)
            return loss.detach()

    with pytest.raises(ValueError, match="training_step of Own does not call super"):
        make_trainer(Own, bert(), token_rows(8), lbe_beta=1.0).train()
    make_trainer(Own, bert(), token_rows(8), lbe_beta=0.0).train()


def test_settings_and_model_of_the_moment_are_used(make_trainer: Make) -> None:
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), lbe_beta=0.0)
    trainer.args.lbe_beta = 3.0
    trainer.train()
    assert trainer.lbe.beta == 3.0
    assert trainer.state.log_history[0]["lbe_loss"] > 0
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = 1
    with pytest.raises(ValueError, match="A single example has no variance"):
        trainer.train()
    trainer = make_trainer(LBETrainer, bert(), token_rows(8))
    trainer.train()
    trainer.model = trainer.model_wrapped = bert(num_hidden_layers=2)
    trainer.optimizer = None
    trainer.train()
    assert len(trainer.lbe.alpha) == 3


def test_own_create_optimizer_changes_nothing(make_trainer: Make) -> None:
    class Own(LBETrainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            return self.optimizer

    trainer = make_trainer(Own, bert(), token_rows(8), lbe_beta=0.0)
    trainer.args.lbe_beta = 3.0
    trainer.train()
    assert trainer.state.log_history[0]["lbe_loss"] > 0


def test_chunks_of_which_the_last_one_has_one_row(make_trainer: Make, warnings_of: Any) -> None:
    class Chunks(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            parts = [{key: value[start : start + 3] for key, value in inputs.items()} for start in (0, 3)]
            return sum(model(**part).loss for part in parts)

    class Both(LBETrainerMixin, Chunks):
        pass

    rows, model = token_rows(4), bert()
    trainer = make_trainer(Both, model, rows, lbe_beta=1.0)
    loss, _, _ = tiny.step(trainer, batch(rows))
    task_loss = model(**batch(rows[:3])).loss + model(**batch(rows[3:])).loss
    assert loss.item() == pytest.approx((task_loss * (1 + penalty_of(model, batch(rows[:3])))).item(), rel=1e-5)
    assert not [text for text in warnings_of() if "penalty was not applied" in text]


# ---- The two forms -------------------------------------------------------------------------------------------------


class Negative(Trainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) - 3.0


class LBENegative(LBETrainerMixin, Negative):
    pass


def test_product_with_a_negative_task_loss_goes_without_the_penalty(make_trainer: Make, warnings_of: Any) -> None:
    gradients = []
    for cls in (Negative, LBENegative):
        trainer = make_trainer(cls, bert(), token_rows(8), lbe_beta=5.0, logging_steps=2, max_steps=4)
        gradients.append(tiny.gradients_of_first_step(trainer))
    assert_same(*gradients)
    assert trainer.state.log_history[0]["lbe_loss"] == 0
    assert trainer.state.log_history[0]["entropy_mean"] > 0
    (warning,) = [text for text in warnings_of() if "since the last log line" in text]
    assert "lbe_form='additive'" in warning
    assert "100% of the batches" in warning


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("form", ["product", "additive"])
def test_the_log_after_a_batch_without_labels(make_trainer: Make, form: str, filtered: bool) -> None:
    """Its loss is NaN. `Trainer` leaves it out of its log; the parts of the loss follow."""
    rows = tiny.causal_rows(16)
    for row in rows:
        row["labels"] = row["labels"] % 2
    for row in rows[4:8]:
        row["labels"] = torch.full_like(row["labels"], -100)
    model = BertForTokenClassification(bert().config)
    settings = {
        "lbe_form": form,
        "lbe_beta": 1.0,
        "max_steps": 4,
        "logging_steps": 4,
        "gradient_accumulation_steps": 1,
    }
    trainer = make_trainer(tiny.InOrder, model, rows, logging_nan_inf_filter=filtered, **settings)
    trainer.train()
    line = trainer.state.log_history[0]
    if filtered:
        assert line["task_loss"] + line["lbe_loss"] == pytest.approx(line["loss"], rel=1e-5)
        assert line["lbe_loss"] > 0
    else:
        assert math.isnan(line["loss"])
        assert math.isnan(line["task_loss"])
        assert 0 < line["lbe_loss"] < 1


def test_additive_with_a_negative_task_loss_steers_to_the_target(make_trainer: Make, warnings_of: Any) -> None:
    settings = {"lbe_beta": 50.0, "lbe_alpha": 0.4, "lbe_form": "additive", "max_steps": 40, "learning_rate": 5e-3}
    trainer = make_trainer(LBENegative, bert(), token_rows(64), **settings, per_device_train_batch_size=16)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert abs(lines[-1]["entropy_mean"] - 0.4) < 0.5 * abs(lines[0]["entropy_mean"] - 0.4)
    for line in lines:
        assert line["task_loss"] < 0 < line["lbe_loss"]
        assert line["task_loss"] + line["lbe_loss"] == pytest.approx(line["loss"], rel=1e-4)
    assert not [text for text in warnings_of() if "lbe_form" in text]


def test_a_penalty_above_the_task_loss_is_reported_once(make_trainer: Make, warnings_of: Any) -> None:
    """Of a model whose activations are far larger than the targets allow."""
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight.fill_(100.0)
    trainer = make_trainer(LBETrainer, model, token_rows(16), lbe_beta=2.0, max_steps=4, logging_steps=1)
    trainer.train()
    (warning,) = [text for text in warnings_of() if "times the task loss" in text]
    first = next(line for line in trainer.state.log_history if "lbe_loss" in line)
    assert f"{first['lbe_loss'] / first['task_loss']:.1f} times the task loss" in warning
    for part in (
        "set lbe_alpha near their batch entropy",
        "lower lbe_beta, now 2.0",
        "their targets are 0.50 to 0.50",
    ):
        assert part in warning


# ---- What the end of training reports ------------------------------------------------------------------------------


def test_a_penalty_too_small_to_matter_is_reported_at_the_end(make_trainer: Make, warnings_of: Any) -> None:
    make_trainer(LBETrainer, bert(), token_rows(8), lbe_beta=1e-4).train()
    (warning,) = [text for text in warnings_of() if "of the task loss over this run" in text]
    for part in ("too small", "raise lbe_beta, now 0.0001", "lbe_target_modules", "lbe_alpha"):
        assert part in warning
    assert "\n" not in warning


def test_a_penalty_that_was_never_applied_is_reported(make_trainer: Make, warnings_of: Any) -> None:
    negative = make_trainer(LBENegative, bert(), token_rows(8), lbe_beta=5.0)
    negative.train()
    assert "Use lbe_form='additive'" in next(text for text in warnings_of() if "over this run" in text)
    negative.create_model_card()
    card = Path(negative.args.output_dir, "README.md").read_text()
    assert "the penalty was never applied" in card
    single = make_trainer(
        LBETrainer, bert(), token_rows(8), {"data_collator": lambda rows: batch(rows[:1])}, lbe_beta=5.0
    )
    single.train()
    assert "no batch could be measured" in [text for text in warnings_of() if "over this run" in text][1]


def test_a_penalty_that_matters_is_not_reported(make_trainer: Make, warnings_of: Any) -> None:
    make_trainer(LBETrainer, bert(), token_rows(8), lbe_beta=5.0).train()
    make_trainer(LBETrainer, bert(), token_rows(8), lbe_beta=0.0, lbe_log_entropy=True).train()
    assert not [text for text in warnings_of() if "the task loss" in text]


def test_each_training_warns_anew(make_trainer: Make, warnings_of: Any) -> None:
    """The trials of a hyper-parameter search have the same layers."""

    def collapsed() -> Any:
        model = bert()
        with torch.no_grad():
            model.bert.encoder.layer[1].output.LayerNorm.weight.zero_()
        return model

    args = make_trainer(LBETrainer, bert(), token_rows(8), learning_rate=0.0).args
    trainer = LBETrainer(model_init=collapsed, args=args, train_dataset=token_rows(8))
    for trial in (1, 2):
        trainer.train()
        assert len([text for text in warnings_of() if "they have collapsed, or the scale" in text]) == trial


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft still asks for it
def test_prompts_of_peft_are_measured_with_the_mask_that_fits(make_trainer: Make, warnings_of: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    for targets in (None, ["encoder.layer.0", "encoder.layer.2"]):
        model = peft.get_peft_model(bert(), config)
        trainer = make_trainer(LBETrainer, model, token_rows(8), lbe_beta=1.0, lbe_target_modules=targets, max_steps=1)
        trainer.train()
        assert trainer.state.log_history[0]["lbe_loss"] > 0
    assert not [text for text in warnings_of() if "mask" in text]
