"""Modules of models that are not from Transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from tiny import batch, token_rows
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration

from lbe_hf import LBETrainer, information_flow
from lbe_hf.target_modules import TargetModules

Make = Callable[..., Any]


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
    assert len([text for text in warnings_of() if "padding mask does not match the length" in text]) == 1


def test_any_module_that_returns_a_loss(make_trainer: Make) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="name the modules to regularize with lbe_target_modules"):
        make_trainer(LBETrainer, Convolution(), token_rows(8))
    trainer = make_trainer(LBETrainer, Convolution(), token_rows(8), lbe_target_modules=r"embed|short")
    trainer.train()
    assert len(trainer.lbe.alpha) == 2
    assert trainer.state.log_history[0]["lbe_loss"] > 0


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
    with pytest.raises(ValueError, match="1 layers have targets, but this batch has 2 activations"):
        trainer.train()


def bart() -> BartForConditionalGeneration:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return BartForConditionalGeneration(
        BartConfig(d_model=8, **heads, encoder_layers=1, decoder_layers=1, vocab_size=40)
    ).eval()


def test_keys_of_cross_attention_have_the_mask_of_the_encoder() -> None:
    inputs = batch(token_rows(4, length=9))
    inputs["labels"] = torch.full((4, 5), 7)
    inputs["labels"][0, 2:] = -100
    model = bart()
    targets = ["encoder_attn.k_proj", "encoder_attn.q_proj"]
    with TargetModules(model, targets).listen(inputs) as recording:
        model(**inputs)
    masks = {activation.name.rpartition(".")[2]: activation.fitting_mask for activation in recording.passes[0]}
    assert torch.equal(masks["k_proj"], inputs["attention_mask"].bool())
    assert torch.equal(masks["q_proj"], inputs["labels"] != -100)


def test_layers_whose_first_dimension_is_not_the_batch_are_named(make_trainer: Make, warnings_of: Any) -> None:
    """PyTorch's own layout of a transformer, (T, B, D)."""

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(tiny.VOCABULARY, 6)
            self.encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0)
            self.head = nn.Linear(6, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
            hidden = self.encoder(self.embed(input_ids).transpose(0, 1)).transpose(0, 1)
            logits = self.head(hidden.mean(1))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows, model = token_rows(6), TimeFirst()
    named = "not the batch, so that their variance does not run over the examples: encoder."
    for samples, times in (("token", 0), ("sequence", 1)):
        settings = {"lbe_target_modules": ["embed", "encoder"], "lbe_samples": samples}
        make_trainer(LBETrainer, model, rows, **settings, max_steps=2).train()
        assert sum(named in text for text in warnings_of()) == times
    information_flow(model, [batch(rows)] * 2, target_modules=["embed", "encoder"])
    assert sum(named in text for text in warnings_of()) == 2
