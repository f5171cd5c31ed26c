"""`InformationFlowCallback` with models and data of any kind: it measures them, or says why it does not."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from tiny import token_rows
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from lbe_hf import InformationFlowCallback, LBETrainer

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second to draw."""
    monkeypatch.setattr("lbe_hf.callback.can_draw", lambda: False)


def test_what_cannot_be_measured_is_one_warning(make_trainer: Make, warnings_of: Any) -> None:
    callback = InformationFlowCallback(every_steps=1)
    trainer = make_trainer(
        Trainer, tiny.bert(), token_rows(16), {"callbacks": [callback]}, cls=TrainingArguments,
        per_device_train_batch_size=1,
    )  # fmt: skip
    trainer.train()
    assert len([text for text in warnings_of() if "cannot measure" in text and "samples='token'" in text]) == 1
    assert callback.history.steps == []
    with pytest.raises(ValueError, match="every_steps must be at least 1, not 0"):
        InformationFlowCallback(every_steps=0)
    with pytest.raises(ValueError, match="samples must be one of"):
        InformationFlowCallback(samples="tokens")  # type: ignore[arg-type]


class Strict(nn.Module):
    """Does not take labels in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        assert self.training, "labels are for training only"
        return {"loss": nn.functional.cross_entropy(self.layer(x), labels)}


class ByParts(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        states = model.bert(inputs["input_ids"]).last_hidden_state
        return nn.functional.cross_entropy(model.classifier(states[:, 0]), inputs["labels"])


def test_whatever_the_model_does_when_it_is_measured_training_goes_on(make_trainer: Make, warnings_of: Any) -> None:
    numbers = [{"x": torch.randn(4), "labels": torch.tensor(index % 2)} for index in range(16)]
    for cls, model, rows, reason in (
        (Trainer, Strict(), numbers, "labels are for training only"),
        (ByParts, tiny.bert(), token_rows(16), "without calling BertForSequenceClassification"),
    ):
        callback = InformationFlowCallback(every_steps=1)
        trainer = make_trainer(cls, model, rows, {"callbacks": [callback]}, cls=TrainingArguments, max_steps=2)
        trainer.train()
        assert trainer.state.global_step == 2
        assert len([text for text in warnings_of() if "cannot measure" in text and reason in text]) == 1


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from token_rows(16)


def test_a_stream_has_no_epochs_to_measure_at(make_trainer: Make, warnings_of: Any) -> None:
    trainer = make_trainer(
        Trainer, tiny.bert(), Stream(), {"callbacks": [InformationFlowCallback()]}, cls=TrainingArguments,
        logging_strategy="epoch", max_steps=2,
    )  # fmt: skip
    trainer.train()
    assert any("before the first measurement was due" in text for text in warnings_of())


def test_two_of_them_are_refused(make_trainer: Make) -> None:
    callbacks = [InformationFlowCallback(), InformationFlowCallback(samples="token")]
    trainer = make_trainer(Trainer, tiny.bert(), token_rows(8), {"callbacks": callbacks}, cls=TrainingArguments)
    with pytest.raises(ValueError, match="can have one InformationFlowCallback only"):
        trainer.train()


class Plain(nn.Module):
    """Takes any argument, as `Trainer` passes some that a model may not know."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 2)))

    def forward(self, x: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        assert kwargs.keys() <= {"num_items_in_batch"}
        logits = self.layers(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_that_takes_any_argument(adapted: bool, make_trainer: Make, warnings_of: Any) -> None:
    model: nn.Module = Plain()
    names = {"layers.0", "layers.1.0.0", "layers.1.1"}
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["layers.0"]))
        names = names - {"layers.0"} | {"layers.0.base_layer"}  # without the adapter, which starts at zero
    rows = [{"x": torch.randn(4), "labels": torch.tensor(index % 2)} for index in range(16)]
    callback = InformationFlowCallback(every_steps=1)
    make_trainer(Trainer, model, rows, {"callbacks": [callback]}, cls=TrainingArguments).train()
    assert callback.history.steps == [1, 2, 3]
    assert {layer.name for layer in callback.history.layers[0]} == names
    with pytest.raises(ValueError, match="name the modules to regularize with lbe_target_modules"):
        make_trainer(LBETrainer, model, rows)


def test_a_model_that_is_no_transformers_model(make_trainer: Make) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.layers(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [{"x": torch.randn(4), "labels": torch.tensor(index % 2)} for index in range(16)]
    callback = InformationFlowCallback(every_steps=1)
    make_trainer(Trainer, Net(), rows, {"callbacks": [callback]}, cls=TrainingArguments).train()
    assert [layer.name for layer in callback.history.layers[0]] == ["layers.0", "layers.1", "layers.2"]
