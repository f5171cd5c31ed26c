"""One training step of each family, from a tiny random config, with the gradient of the penalty checked."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from families import FAMILIES, model_for, rows_for
from tiny import batch
from torch import Tensor

from lbe_hf import LBETrainer


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
