from dataclasses import replace
from pathlib import Path

import pytest

from lbe_hf.flow_history import FlowHistory
from lbe_hf.layer_statistics import LayerStatistics
from lbe_hf.verdict import Finding

LAYER = LayerStatistics("a", 0.5, 0.4, 3.0, 0.0, 0.0, 7)
COLLAPSED = Finding("collapsed", "b", 1e-6, "Collapsed.", "Lower the learning rate.")
REDUNDANT = Finding("redundant", "b", 1.0, "Redundant.", "None needed.")


def test_only_the_first_fault_of_a_kind_is_an_event() -> None:
    history = FlowHistory()
    layers = [LAYER, replace(LAYER, name="b")]
    assert history.add(2, layers, [REDUNDANT], ["fine"]) == []
    (event,) = history.add(4, layers, [COLLAPSED], ["bad"])
    assert (event.step, event.healthy_at, event.layer) == (4, 2, "b")
    assert str(event) == "Step 4 (not present at step 2): Collapsed. Lower the learning rate."
    assert history.add(6, layers, [COLLAPSED], ["bad"]) == []
    (first,) = FlowHistory().add(1, layers, [COLLAPSED], ["bad"])
    assert str(first).startswith("Step 1 (first measurement): ")


def test_saved_history_comes_back_with_layers_that_were_not_measured(tmp_path: Path) -> None:
    history = FlowHistory()
    history.add(2, [LAYER, replace(LAYER, name="b")], [], ["fine"])
    history.add(4, [LAYER], [COLLAPSED], ["bad"])
    history.save(tmp_path / "flow.json")
    loaded = FlowHistory.load(tmp_path / "flow.json")
    assert loaded.to_dict() == history.to_dict()
    assert loaded.to_dict()["batch_entropy"] == [[0.5, 0.5], [0.5, None]]
    assert [path.name for path in tmp_path.iterdir()] == ["flow.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"names": []}'])
def test_a_file_that_is_no_record(content: str, tmp_path: Path) -> None:
    (tmp_path / "flow.json").write_text(content)
    with pytest.raises(ValueError, match=r"flow\.json is not a record"):
        FlowHistory.load(tmp_path / "flow.json")
