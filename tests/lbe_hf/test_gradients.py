import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lbe_hf.gradients import train_nothing


def test_what_reaches_a_trainable_parameter() -> None:
    frozen, trained = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)
    x = torch.randn(2, 3)
    asked = x.clone().requires_grad_()  # has a gradient, and is no parameter
    above = frozen(trained(x)).relu()
    values = [frozen(x), frozen(asked), above, above * 2, trained(asked).detach(), asked]
    assert train_nothing(values) == [True, True, False, False, True, True]


def test_a_shared_part_of_the_graph_is_known_from_an_earlier_walk() -> None:
    trained = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    state, states = trained(x), []
    for _ in range(2000):
        state = state + 1
        states.append(state)
    assert train_nothing(states) == [False] * 2000


def test_reentrant_checkpointing_hides_its_parameters() -> None:
    layer, asked = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    inside: list[torch.Tensor] = []

    def segment(x: torch.Tensor) -> torch.Tensor:
        inside.append(layer(x))
        return inside[0] * 2

    after = checkpoint(segment, asked, use_reentrant=True)
    assert train_nothing([after, inside[0]]) == [False, True]
