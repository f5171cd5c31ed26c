"""Modules that lose what they are given."""

import math

import pytest
import torch
from tiny import batch, bert, token_rows
from torch import Tensor, nn

from lbe_hf import information_flow
from lbe_hf.leaf_modules import LeafModules, leaf_modules


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.positions = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        constant = self.positions(torch.ones_like(x))  # the same for every example by design
        return self.dropout(x + self.second(torch.relu(self.first(x))) + constant)


def statistics(model: nn.Module, *inputs: Tensor) -> LeafModules:
    modules = LeafModules(model)
    with torch.no_grad():
        for x in inputs:
            with modules.listen(len(x), None):
                model(x)
    return modules


@torch.no_grad()
def zero(linear: nn.Linear, units: int | None = None) -> None:
    linear.weight[:units] = 0.0


def test_a_module_with_zero_weights_is_found_though_a_residual_connection_goes_around_it() -> None:
    model = Residual()
    zero(model.second)
    found = statistics(model, torch.randn(8, 4)).statistics
    assert found["second"].dead_units == 1
    assert found["first"].dead_units == 0
    assert math.isnan(found["positions"].dead_units)


def test_what_is_constant_by_design_or_by_an_earlier_module_is_not_blamed() -> None:
    model = Residual()
    zero(model.first)  # so that the second one gets the same for every example, and cannot help it
    found = statistics(model, torch.randn(8, 4)).statistics
    assert found["first"].dead_units == 1
    assert math.isnan(found["second"].dead_units)


def test_a_unit_is_dead_if_it_is_so_in_every_batch() -> None:
    model = Residual()
    zero(model.first, 1)
    alike = torch.ones(8, 4)  # for which everything is dead
    assert statistics(model, alike, torch.randn(8, 4)).statistics["first"].dead_units == pytest.approx(0.25)


def test_the_module_that_makes_nan_is_named_and_not_those_after_it() -> None:
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].intermediate.dense.weight[0, 0] = math.nan
    modules = LeafModules(model)
    inputs = batch(token_rows(8))
    with torch.no_grad(), modules.listen(8, inputs["attention_mask"].bool()):
        model(**inputs)
    wrong = [name for name, module in modules.statistics.items() if module.nonfinite > 0]
    assert wrong == ["bert.encoder.layer.1.intermediate.dense"]


def test_outputs_for_anything_but_the_examples_are_left_alone() -> None:
    model = Residual()
    zero(model.second)
    modules = LeafModules(model)
    with torch.no_grad(), modules.listen(4, None):
        model(torch.randn(8, 4))
    assert modules.statistics == {}


def test_hooks_are_gone_afterwards() -> None:
    model = bert()
    statistics_of = leaf_modules(model)
    assert "bert.encoder.layer.0.attention.self.query" in statistics_of
    assert not any("embeddings.word" in name or "dropout" in name for name in statistics_of)
    modules = LeafModules(model)
    with pytest.raises(RuntimeError, match="stop"), modules.listen(8, None):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft still asks for it
def test_a_new_adapter_is_no_fault_and_one_with_nan_is() -> None:
    """LoRA's second matrix starts at zero; the layer that it adapts is checked as before."""
    peft = pytest.importorskip("peft")
    for model, targets in ((bert(), ["query"]), (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), ["1"])):
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
        inputs = batch(token_rows(8)) if isinstance(model, type(bert())) else {"input": torch.randn(8, 4)}
        assert information_flow(adapted, [inputs]).findings == []
        second = [own for name, own in adapted.named_parameters() if "lora_B" in name]
        with torch.no_grad():
            second[-1][0] = math.nan
        (finding,) = information_flow(adapted, [inputs]).findings
        assert finding.kind == "nonfinite"
        assert "lora_B" in finding.message
    with torch.no_grad():
        second[-1][0] = 0
    zero(adapted.base_model.model[1].base_layer)
    (finding,) = information_flow(adapted, [{"input": torch.randn(8, 4)}]).findings
    assert finding.layer == "1.base_layer"
