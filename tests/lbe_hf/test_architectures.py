"""One training step of each family, from a tiny random config, with the gradient of the penalty checked."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import transformers
from tiny import SHAPE, VOCABULARY, batch, causal_rows, token_rows
from torch import Tensor

from lbe_hf import LBETrainer

TEXT = {**SHAPE, "vocab_size": VOCABULARY}
NAMED = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER_DECODER = {
    "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": VOCABULARY,
    "max_position_embeddings": 32, "decoder_start_token_id": 2, "forced_eos_token_id": 2, **NAMED,
}  # fmt: skip
T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2,
    "vocab_size": VOCABULARY, "decoder_start_token_id": 0,
}  # fmt: skip

# Model class, configuration, number of activations.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "Bert": ("BertForSequenceClassification", TEXT, 4),
    "Roberta": ("RobertaForSequenceClassification", TEXT, 4),
    "DistilBert": (
        "DistilBertForSequenceClassification",
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": VOCABULARY},
        4,
    ),
    "Albert": ("AlbertForSequenceClassification", {**TEXT, "embedding_size": 8}, 4),
    "Electra": ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 8}, 4),
    "DebertaV2": (
        "DebertaV2ForSequenceClassification",
        {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        4,
    ),
    "MPNet": ("MPNetForSequenceClassification", TEXT, 4),
    "ModernBert": ("ModernBertForSequenceClassification", {**TEXT, **NAMED, "cls_token_id": 1, "sep_token_id": 2}, 4),
    "GPT2": (
        "GPT2ForSequenceClassification",
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": VOCABULARY, **NAMED},
        4,
    ),
    "Llama": ("LlamaForCausalLM", {**TEXT, **NAMED}, 4),
    "T5": ("T5ForConditionalGeneration", T5, 4 + 3),
    "Bart": ("BartForConditionalGeneration", ENCODER_DECODER, 4 + 3),
    "ViT": ("ViTForImageClassification", {**SHAPE, "image_size": 16, "patch_size": 8}, 4),
}


def rows_for(family: str) -> list[dict[str, Tensor]]:
    if family == "ViT":
        generator = torch.Generator().manual_seed(0)
        return [
            {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": torch.tensor(index % 2)}
            for index in range(8)
        ]
    return causal_rows(8) if family in ("Llama", "T5", "Bart") else token_rows(8)


def model_for(family: str) -> Any:
    class_name, config, _ = FAMILIES[family]
    torch.manual_seed(0)
    return getattr(transformers, class_name)(getattr(transformers, f"{family}Config")(**config))


@pytest.mark.parametrize("family", FAMILIES)
def test_penalty_reaches_the_first_layer(family: str, make_trainer: Callable[..., Any]) -> None:
    model, rows = model_for(family), rows_for(family)
    layers = FAMILIES[family][2]
    trainer = make_trainer(
        LBETrainer, model, rows, per_device_train_batch_size=8, max_steps=1, lbe_beta=1.0, lbe_alpha=0.8,
        lbe_log_entropy=True,
    )  # fmt: skip
    assert len(trainer.lbe.alpha) == layers
    # Without the task loss (the same number, detached) all gradient is the penalty's.
    inputs = batch(rows)
    torch.manual_seed(1)
    whole, gradients, _ = tiny.step(trainer, inputs)
    torch.manual_seed(1)
    outputs = model(**inputs, output_hidden_states=True)
    name, _ = first_layer(model)
    whole_gradient = gradients[name]
    task_gradient = first_layer_gradient(model, outputs.loss)
    states = outputs.get("hidden_states") or (*outputs.encoder_hidden_states, *outputs.decoder_hidden_states)
    masks = [inputs.get("attention_mask")] * layers
    if "decoder_hidden_states" in outputs:
        masks[4:] = [inputs["labels"] != -100] * 3
    entropies = [tiny.reference_entropy(state, mask) for state, mask in zip(states, masks, strict=True)]
    penalty = tiny.reference_penalty(entropies, torch.full((layers,), 0.8), 0.2, beta=1.0)
    assert whole.item() == pytest.approx((outputs.loss * (1 + penalty)).item(), rel=1e-5)
    penalty_gradient = first_layer_gradient(model, outputs.loss.detach() * penalty)
    assert penalty_gradient.abs().max() > 0
    expected = task_gradient * (1 + penalty.item()) + penalty_gradient
    torch.testing.assert_close(whole_gradient, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["lbe_loss"] > 0
    assert f"entropy/layer_{layers - 1:02d}" in logs
    assert f"entropy/layer_{layers:02d}" not in logs


def first_layer_gradient(model: Any, loss: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, first_layer(model)[1], retain_graph=True)
    return gradient


def first_layer(model: Any) -> tuple[str, Tensor]:
    """The first weight matrix after the embeddings, with its name."""
    return next(
        (name, parameter)
        for name, parameter in model.named_parameters()
        if "layer" in name.replace("block", "layer").replace(".h.", ".layer.") and parameter.dim() == 2
    )
