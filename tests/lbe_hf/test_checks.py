"""What a training is refused or warned for, with real trainers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import SHAPE, STILL, bert, token_rows
from torch import nn
from transformers import AlbertConfig, AlbertForSequenceClassification, TrainingArguments

from lbe_hf import LBETrainer
from lbe_hf.checks import FirstBatchError, check_training

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lbe_layers": [0, 4]}, "names layer 4, but there are 4 activations"),
        ({"lbe_target_modules": ["poler"]}, "nearest names are .*bert.pooler"),
    ],
)
def test_refused_at_construction(make_trainer: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(LBETrainer, bert(), token_rows(8), **settings)
    make_trainer(LBETrainer, bert(), token_rows(8), **settings, lbe_beta=0.0)  # nothing to refuse


def test_layers_of_modules_are_counted_by_their_calls(make_trainer: Make) -> None:
    torch.manual_seed(0)
    config = AlbertConfig(vocab_size=40, embedding_size=8, **SHAPE, **STILL)
    of_albert = {"lbe_target_modules": [r"ffn_output"], "lbe_layers": [-2, -1]}
    trainer = make_trainer(LBETrainer, AlbertForSequenceClassification(config), token_rows(8), **of_albert)
    trainer.train()
    assert [name.rpartition(".")[2] for name in trainer.lbe_layer_names] == [
        "ffn_output (call 2)",
        "ffn_output (call 3)",
    ]
    too_high = {"lbe_layers": [2], "lbe_target_modules": ["pooler"]}
    with pytest.raises(ValueError, match="names layer 2, but there are 1 activations"):
        make_trainer(LBETrainer, bert(), token_rows(8), **too_high).train()


def test_one_row_batches_are_refused_when_training_starts(make_trainer: Make) -> None:
    rows = token_rows(8)
    trainer = make_trainer(LBETrainer, bert(), rows, {"eval_dataset": rows}, per_device_train_batch_size=1)
    assert "eval_loss" in trainer.evaluate()
    with pytest.raises(FirstBatchError, match="lbe_samples='token'"):
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


def test_a_quantized_model_is_not_refused_where_there_are_several_gpus(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Trainer` does not copy it: it trains on one of them."""
    trainer = make_trainer(LBETrainer, bert(), token_rows(8))
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    trainer.model.is_loaded_in_4bit = True
    assert trainer._wrap_model(trainer.model) is trainer.model
    check_training(trainer)


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


def test_last_batch_of_one_row_goes_without_the_penalty(make_trainer: Make, warnings_of: Any) -> None:
    rows = token_rows(9)
    trainer = make_trainer(LBETrainer, bert(), rows, max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert len([text for text in warnings_of() if "penalty was not applied to a training batch" in text]) == 1
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
    assert len([text for text in warnings_of() if "penalty was not applied to a training batch" in text]) == 1
    assert trainer.state.log_history[0]["lbe_loss"] == 0
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert torch.equal(trainer.lbe.alpha, torch.full((4,), 0.5))


def test_frozen_layers_are_named(make_trainer: Make, warnings_of: Any) -> None:
    model = bert()
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    make_trainer(LBETrainer, model, token_rows(8)).train()
    (text,) = [text for text in warnings_of() if "cannot train layers" in text]
    assert text.endswith(": hidden_states[0].")


def test_module_without_rows_is_refused(make_trainer: Make) -> None:
    targets = ["position_embeddings", "pooler"]  # positions are looked up once for all rows
    trainer = make_trainer(LBETrainer, bert(), token_rows(8), lbe_target_modules=targets)
    with pytest.raises(FirstBatchError, match=r"one sample in .* examples: bert.embeddings.position_embeddings"):
        trainer.train()
