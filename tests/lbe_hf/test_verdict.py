"""The findings, from statistics written down by hand."""

import dataclasses
from typing import Any

import pytest

from lbe_hf.batch_inputs import BatchInputs
from lbe_hf.layer_statistics import LayerStatistics
from lbe_hf.leaf_modules import ModuleStatistics
from lbe_hf.verdict import CONE_SHARE, KINDS, judge

HEALTHY = LayerStatistics("", 0.5, 0.5, 10.0, 0.0, 0.0, 31)
COLLAPSED = {"batch_entropy": 0.0, "variance_share": 1e-6}
CONE = {"variance_share": 0.01}
REDUNDANT = {"effective_rank": 1.1}


def layers(*changes: dict[str, Any], stream: str = "hidden_states") -> list[LayerStatistics]:
    return [dataclasses.replace(HEALTHY, name=f"{stream}[{index}]", **own) for index, own in enumerate(changes)]


def found(*args: Any) -> list[tuple[str, str]]:
    return [(finding.kind, finding.layer) for finding in judge(*args)]


def inputs(**changes: Any) -> BatchInputs:
    return BatchInputs(**{"size": 8, "mask": None, "alike": False, "only_padding": 0.0, "nonfinite": False, **changes})


def test_a_healthy_model_has_no_finding() -> None:
    assert found(layers({}, {}, {}), [ModuleStatistics("dense", 0.3)], [inputs()]) == []
    small = {"batch_entropy": 1e-5}  # of a small scale, which says nothing
    assert found(layers(small, small, {})) == []


def test_a_layer_that_recovers_has_lost_nothing() -> None:
    assert found(layers({}, COLLAPSED, {})) == []
    assert found(layers({}, CONE, {})) == []
    assert found(layers({}, REDUNDANT, {})) == []


def test_the_first_of_the_layers_that_never_recover_is_named() -> None:
    assert found(layers({}, COLLAPSED, {}, COLLAPSED, COLLAPSED)) == [("collapsed", "hidden_states[3]")]
    assert found(layers({}, CONE, CONE)) == [("cone", "hidden_states[1]")]
    assert found(layers({}, {}, REDUNDANT)) == [("redundant", "hidden_states[2]")]
    both = {**CONE, **REDUNDANT}
    assert found(layers({}, both)) == [("cone", "hidden_states[1]"), ("redundant", "hidden_states[1]")]


def test_a_cone_is_judged_at_the_output() -> None:
    (finding,) = judge(layers({}, {"variance_share": 0.014}))
    assert "0.986" in finding.message
    assert finding.value == 0.014 < CONE_SHARE
    assert finding.is_fault


def test_redundant_layers_are_no_fault_and_need_a_rank_that_could_be_higher() -> None:
    (finding,) = judge(layers({}, REDUNDANT))
    assert not finding.is_fault
    assert "solved task" in finding.remedy
    assert found(layers({}, {**REDUNDANT, "max_rank": 3})) == []


def test_encoder_and_decoder_are_judged_apart() -> None:
    encoder = layers({}, COLLAPSED, stream="encoder_hidden_states")
    decoder = layers({}, {}, stream="decoder_hidden_states")
    assert found([*encoder, *decoder]) == [("collapsed", "encoder_hidden_states[1]")]


def test_nan_is_found_where_it_appears_and_the_module_that_made_it() -> None:
    nan = {"nonfinite": 0.5, "variance_share": float("nan")}
    modules = [ModuleStatistics("a"), ModuleStatistics("b", nonfinite=0.25), ModuleStatistics("c", nonfinite=1.0)]
    (finding,) = judge(layers({}, nan, nan), modules)
    assert (finding.kind, finding.layer, finding.value) == ("nonfinite", "hidden_states[1]", 0.5)
    assert "caused by b" in finding.message
    assert found(layers({}, {}), modules) == [("nonfinite", "b")]


def test_dead_units_of_layers_and_modules() -> None:
    modules = [ModuleStatistics("first", 0.5), ModuleStatistics("second", 1.0), ModuleStatistics("third", 0.97)]
    (finding,) = judge(layers({}, {}), modules)
    assert (finding.kind, finding.layer, finding.value) == ("dead_units", "second", 1.0)
    assert "1 more" in finding.message
    assert found(layers({}, {"dead_units": 0.99})) == [("dead_units", "hidden_states[1]")]
    # The module that ended the signal is named beside the layers that it collapsed, not a second time.
    (finding,) = judge(layers({}, {**COLLAPSED, "variance_share": 0.0}), modules)
    assert "second has a constant output" in finding.message
    (finding,) = judge(layers({}, COLLAPSED), modules)  # which fades: a dead module further on did not do it
    assert "constant output" not in finding.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"alike": True}, "same"), ({"only_padding": 1.0}, "all examples are padding"), ({"nonfinite": True}, "NaN")],
)
def test_what_is_wrong_with_the_data_comes_first_and_alone(changes: dict[str, Any], message: str) -> None:
    (finding,) = judge(layers({}, COLLAPSED), [ModuleStatistics("dense", 1.0)], [inputs(**changes)])
    assert finding.kind == "data"
    assert message in finding.message


def test_one_batch_with_different_examples_clears_the_data() -> None:
    assert found(layers({}, {}), [], [inputs(alike=True), inputs()]) == []
    assert found(layers({}, {}), [], [inputs(only_padding=0.5)]) == []


def test_findings_are_ordered_and_speak_in_sentences() -> None:
    everything = judge(layers({}, {**CONE, **REDUNDANT, "dead_units": 1.0}))
    assert [finding.kind for finding in everything] == ["cone", "redundant", "dead_units"]
    assert [KINDS.index(finding.kind) for finding in everything] == sorted(KINDS.index(f.kind) for f in everything)
    assert all(str(finding).endswith(".") for finding in everything)
