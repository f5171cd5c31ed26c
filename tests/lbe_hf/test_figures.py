import dataclasses

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from lbe_hf.diagnosis import InformationFlow
from lbe_hf.figures import draw_entropy_by_step, draw_flow_by_step
from lbe_hf.flow_history import FlowHistory
from lbe_hf.layer_statistics import LayerStatistics
from lbe_hf.verdict import judge


def test_layers_are_drawn_by_number_and_cut_at_the_highest() -> None:
    layers = range(101)
    history: list[dict[str, float]] = [
        # A history read back from a checkpoint is sorted by name: layer_10, layer_100, layer_11.
        dict(sorted({f"entropy/layer_{layer:02d}": layer / 50 + step / 100 for layer in layers}.items()))
        | {"step": step}
        for step in (10, 20)
    ]
    image = draw_entropy_by_step(Figure().subplots(), [history[0], {"eval_loss": 1.0, "step": 10}, history[1]], 1.5)
    expected = [[min(layer / 50 + step / 100, 1.5) for step in (10, 20)] for layer in layers]
    np.testing.assert_allclose(image.get_array(), expected)
    assert list(image.get_extent()) == [0, 20, -0.5, 100.5]
    assert image.origin == "lower"


def test_a_history_without_entropies_is_refused() -> None:
    with pytest.raises(ValueError, match="lbe_log_entropy"):
        draw_entropy_by_step(Figure().subplots(), [{"loss": 1.0, "step": 1}], 2.0)


def layer(name: str, **changes: float) -> LayerStatistics:
    values = {"batch_entropy": 1.0, "variance_share": 0.5, "effective_rank": 4.0, "dead_units": 0.0, "nonfinite": 0.0}
    return LayerStatistics(name, **{**values, "max_rank": 31, **changes})


def flow_of(layers: list[LayerStatistics]) -> InformationFlow:
    return InformationFlow(layers, [], judge(layers))


def test_each_statistic_is_drawn_and_the_layers_of_the_verdict_are_marked() -> None:
    healthy = [layer(f"hidden_states[{index}]") for index in range(40)]
    broken = [*healthy[:38], *(dataclasses.replace(own, variance_share=0.0) for own in healthy[38:])]
    panels = flow_of(broken).plot().axes
    assert [axes.get_ylabel() for axes in panels] == ["batch entropy (nats)", "variance share", "effective rank"]
    values, mark = panels[1].lines
    assert list(values.get_ydata()) == [0.5] * 38 + [0.0, 0.0]
    assert list(mark.get_xdata()) == [38, 38]
    assert [text.get_text() for text in panels[0].texts] == ["collapsed"]
    assert all(len(axes.lines) == 1 for axes in flow_of(healthy).plot().axes)


def test_a_training_is_drawn_as_layers_by_steps_with_its_events() -> None:
    history = FlowHistory()
    for step, share in ((10, 0.5), (20, 0.5), (30, 0.0)):
        flow = flow_of([layer("hidden_states[0]"), layer("hidden_states[1]", variance_share=share)])
        history.add(step, flow.layers, flow.findings, flow.verdict)
    panels = [axes for axes in draw_flow_by_step(history).axes if axes.images]
    np.testing.assert_allclose(panels[1].images[0].get_array(), [[0.5, 0.5, 0.5], [0.5, 0.5, 0.0]])
    assert [list(line.get_xdata()) for line in panels[1].lines] == [[2.5, 2.5]]
    assert [text.get_text() for text in panels[-1].get_xticklabels()] == ["10", "20", "30"]
