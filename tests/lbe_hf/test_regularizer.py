import math

import pytest
import torch
from tiny import reference_penalty

from lbe_hf import LBERegularizer, batch_entropies
from lbe_hf.regularizer import add_penalty


def test_penalty_and_its_gradients_follow_the_formula() -> None:
    regularizer = LBERegularizer(4, alpha_min=0.2, beta=0.3).double()
    with torch.no_grad():
        regularizer.alpha.copy_(torch.tensor([0.5, -0.7, 0.1, 0.2]))
    entropies = torch.tensor([0.1, 0.9, 0.4, 0.0], dtype=torch.float64, requires_grad=True)
    penalty = regularizer(entropies)
    penalty.backward()
    assert penalty.item() == pytest.approx(0.3 * (0.4**2 + 0.2**2 + 0.2**2 + 0.2**2) / 4)
    slope = 2 * 0.3 / 4
    assert entropies.grad is not None
    expected = torch.tensor([-0.4, 0.2, 0.2, -0.2], dtype=torch.float64) * slope
    torch.testing.assert_close(entropies.grad, expected, rtol=0, atol=1e-8)
    # The third alpha lies under the floor, so its target does not move; the fourth lies on it and does.
    expected = torch.tensor([0.4, 0.2, 0.0, 0.2], dtype=torch.float64) * slope
    assert regularizer.alpha.grad is not None
    torch.testing.assert_close(regularizer.alpha.grad, expected, rtol=0, atol=1e-8)


def test_target_is_bounded_from_below() -> None:
    regularizer = LBERegularizer(3, alpha_min=0.2)
    with torch.no_grad():
        regularizer.alpha.copy_(torch.tensor([0.5, -0.7, 0.1]))
    torch.testing.assert_close(regularizer.target, torch.tensor([0.5, 0.7, 0.2]))


def test_beta_zero_is_no_penalty() -> None:
    assert LBERegularizer(2, beta=0.0)(torch.tensor([0.0, 3.0])) == 0


def test_steers_a_layer_of_a_plain_pytorch_loop_to_its_target() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(5, 6), torch.randn(64, 5)
    with torch.no_grad():
        layer.weight *= 0.01
    regularizer = LBERegularizer(1, alpha=0.8, beta=1.0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (1 + regularizer(batch_entropies([layer(x)]))).backward()
        optimizer.step()
    assert batch_entropies([layer(x)]).item() == pytest.approx(0.8, abs=0.01)


def test_agrees_with_the_loop_over_layers() -> None:
    torch.manual_seed(1)
    regularizer = LBERegularizer(5, alpha=0.4, beta=0.05)
    entropies = torch.rand(5)
    expected = reference_penalty(list(entropies.double()), regularizer.alpha.detach().double(), 0.2, 0.05)
    assert regularizer(entropies).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": -0.1}, "beta must be zero or positive"),
        ({"beta": math.nan}, "beta must be zero or positive"),
        ({"alpha_min": -1.0}, "alpha_min must be zero or positive"),
        ({"alpha": math.inf}, "alpha must be finite"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
    ],
)
def test_refuses_settings_out_of_range(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LBERegularizer(**{"num_layers": 2, **changes})  # type: ignore[arg-type]


def test_refuses_another_number_of_layers() -> None:
    with pytest.raises(ValueError, match="Expected 2 entropies"):
        LBERegularizer(2)(torch.rand(3))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -1.0, 0.0])
def test_a_task_loss_that_is_not_positive_or_not_finite_has_no_penalty_and_no_gradient_of_one(loss: float) -> None:
    task_loss, penalty = torch.tensor(loss, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    regularized, skipped = add_penalty(task_loss, penalty, "product", steps=1)
    regularized.backward()
    torch.testing.assert_close(regularized.detach(), task_loss.detach(), rtol=0, atol=0, equal_nan=True)
    assert skipped
    assert penalty.grad == 0
    assert task_loss.grad == 1
