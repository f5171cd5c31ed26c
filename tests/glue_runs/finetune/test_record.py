import json
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from glue_runs.finetune.record import history, peak_memory_mib, reset_peak_memory, write_json


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, "b": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_history_sorts_layers_and_leaves_out_evaluations() -> None:
    layers = {f"entropy/layer_{index:02d}": float(index) for index in (10, 9, 0)}
    state = TrainerState(log_history=[{"loss": 0.5, "step": 3, **layers}, {"eval_loss": 0.1}, {"train_runtime": 1.0}])
    assert history(state) == [{"loss": 0.5, "step": 3, "entropies": [0.0, 9.0, 10.0], "targets": []}]


@pytest.mark.skipif(peak_memory_mib() is None, reason="this system does not tell the peak")
def test_peak_memory_is_that_since_the_reset() -> None:
    torch.ones(400 * 2**18)  # 400 MiB, freed at once
    high = peak_memory_mib()
    reset_peak_memory()
    low = peak_memory_mib()
    assert high is not None
    assert low is not None
    assert high - low > 300
