import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from grids import made_up
from transformers import TrainerState

from glue_runs.errors import InputError
from glue_runs.files import write_json
from glue_runs.finetune.record import (
    environment,
    history,
    peak_memory_mib,
    read_record,
    reset_peak_memory,
)


def test_record_of_a_run(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    record = made_up(0.5, 0.6, 1)
    write_json(tmp_path / "result.json", record)
    assert read_record(tmp_path) == {**record, "diverged": False}
    write_json(tmp_path / "result.json", {**record, "diverged": True})
    assert (read_record(tmp_path) or {})["diverged"] is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it is null"),
        ([], "it is a list"),
        ({**made_up(0.5, 0.6, 1), "config": "--seed 1"}, "'config' expected a dict"),
        ({"config": {}}, "'metrics'"),
    ],
)
def test_what_is_not_the_record_of_a_run(tmp_path: Path, content: Any, message: str) -> None:
    write_json(tmp_path / "result.json", content)
    with pytest.raises(InputError, match=f"result.json is not the record of a run .*{message}.*delete it and start"):
        read_record(tmp_path)


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*arguments: Any, **more: Any) -> str:
        raise PermissionError(13, "Permission denied")

    write_json(tmp_path / "result.json", made_up(0.5, 0.6, 1))
    monkeypatch.setattr(Path, "read_text", deny)
    with pytest.raises(InputError, match=r"result.json cannot be read \(Permission denied\)"):
        read_record(tmp_path)


def test_history_sorts_layers_and_leaves_out_evaluations() -> None:
    layers = {f"entropy/layer_{index:02d}": float(index) for index in (10, 9, 0)}
    state = TrainerState(log_history=[{"loss": 0.5, "step": 3, **layers}, {"eval_loss": 0.1}, {"train_runtime": 1.0}])
    assert history(state) == [{"loss": 0.5, "step": 3, "entropies": [0.0, 9.0, 10.0], "targets": []}]


CPU = torch.device("cpu")


def test_the_device_is_the_one_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU, a run on the CPU is one on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    assert environment(CPU)["device"] == f"CPU, {torch.get_num_threads()} threads"
    assert environment(torch.device("cuda"))["device"] == "some GPU"
    assert environment(torch.device("mps"))["device"] == "mps"
    assert peak_memory_mib(torch.device("mps")) is None


@pytest.mark.skipif(peak_memory_mib(CPU) is None, reason="this system does not tell the peak")
def test_peak_memory_is_that_since_the_reset() -> None:
    torch.ones(400 * 2**18)  # 400 MiB, freed at once
    high = peak_memory_mib(CPU)
    reset_peak_memory(CPU)
    low = peak_memory_mib(CPU)
    assert high is not None
    assert low is not None
    assert high - low > 300


def test_a_system_that_does_not_report_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gVisor, whose status of a process has no such line."""
    monkeypatch.setattr(Path, "read_text", lambda *_: "VmSize:\t100 kB\nVmRSS:\t50 kB\n")
    assert peak_memory_mib(CPU) is None
    monkeypatch.setattr(Path, "read_text", lambda *_: "VmHWM:\t    2048 kB\n")
    assert peak_memory_mib(CPU) == (2 if sys.platform == "linux" else None)
