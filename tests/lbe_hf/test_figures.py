import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from lbe_hf.diagnosis import InformationFlow
from lbe_hf.figures import draw_entropy_by_step, draw_flow


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


def test_silent_layers_are_marked() -> None:
    names = [f"layer {index}" for index in range(40)]
    (axes,) = draw_flow(InformationFlow(names, [1.0] * 38 + [0.0, 0.0])).axes
    line, marks = axes.lines
    assert list(line.get_ydata()) == [1.0] * 38 + [0.0, 0.0]
    assert list(marks.get_xdata()) == [38, 39]
    assert len(draw_flow(InformationFlow(names, [1.0] * 40)).axes[0].lines) == 1
