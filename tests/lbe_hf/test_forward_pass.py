from types import MethodType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.state import AcceleratorState
from tiny import bert
from torch import Tensor, nn

from lbe_hf.forward_pass import argument, around_forward, is_replaced
from lbe_hf.loss_normalization import ignores_num_items


class Double(nn.Module):
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return x * scale


def plus_one(forward: Any, args: Any, kwargs: Any) -> Any:
    return forward(*args, **kwargs) + 1


def test_whoever_calls_forward_gets_the_stand_in() -> None:
    module, x = Double(), torch.ones(2)
    with around_forward(module, plus_one), around_forward(module, plus_one):
        assert module(x).tolist() == [4, 4]
        assert module.forward(x, scale=3.0).tolist() == [5, 5]
        assert not is_replaced(module)
    assert module(x).tolist() == [2, 2]
    assert "forward" not in vars(module)


def test_a_forward_that_was_there_is_put_back() -> None:
    module = Double()
    other = MethodType(lambda self, x: x * 10, module)
    module.forward = other  # type: ignore[method-assign]
    with around_forward(module, plus_one):
        assert module(torch.ones(1)).item() == 11
        assert is_replaced(module)
    assert vars(module)["forward"] is other
    with pytest.raises(TypeError), around_forward(module, plus_one):
        module(1, 2, 3)
    assert vars(module)["forward"] is other


def test_contexts_may_end_in_the_order_in_which_they_began() -> None:
    module, x = Double(), torch.ones(1)
    first, second, third = (around_forward(module, plus_one) for _ in range(3))
    results = [module(x).item()]
    for context in (first, second):
        context.__enter__()
        results.append(module(x).item())
    first.__exit__(None, None, None)
    results.append(module(x).item())
    third.__enter__()  # above one that has ended
    second.__exit__(None, None, None)
    results.append(module(x).item())
    third.__exit__(None, None, None)
    assert results == [2, 3, 4, 3, 3]
    assert module(x).item() == 2
    assert "forward" not in vars(module)


def test_autocasting_of_accelerate_replaces_nothing() -> None:
    AcceleratorState._reset_state()  # of the trainers of other tests
    try:
        prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(bert())
        assert "forward" in vars(prepared)
        assert not is_replaced(prepared)
        prepared._is_accelerate_prepared = False  # which accelerate 1.10 to 1.12 do not look at
        again = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(prepared)
        assert not is_replaced(again)
        again.forward = MethodType(lambda self, **inputs: None, again)
        assert is_replaced(Accelerator(cpu=True, mixed_precision="bf16").prepare_model(again))
    finally:
        AcceleratorState._reset_state()


def test_moving_the_inputs_to_the_device_of_a_layer_replaces_nothing() -> None:
    """As accelerate does it in a model that is spread over several devices."""
    model = bert()
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True))
    assert "forward" in vars(model)
    assert not is_replaced(model)
    assert ignores_num_items(model)
    model.forward = MethodType(lambda self, **inputs: None, model)
    assert is_replaced(model)


def test_arguments_by_name_by_position_and_in_a_dictionary() -> None:
    forward = Double().forward
    assert argument(forward, (1,), {"scale": 3.0}, "scale") == 3.0
    assert argument(forward, (1, 4.0), {}, "scale") == 4.0
    assert argument(forward, ({"scale": 5.0},), {}, "scale") == 5.0
    assert argument(forward, (1,), {}, "scale") is None
    assert argument(forward, (), {}, "scale") is None
    assert argument(forward, (1, 2, 3, 4), {}, "scale") is None  # a call that will fail
