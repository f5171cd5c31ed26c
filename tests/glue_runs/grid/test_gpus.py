"""Which GPUs a grid uses."""

import pytest
import torch

from glue_runs.grid.arguments import parse_grid
from glue_runs.grid.engines import LocalEngine, choose_engine
from glue_runs.grid.gpus import VISIBLE, gpus_for
from glue_runs.grid.plan import Run, plan_runs


def plan(encoder: str, *more: str) -> list[Run]:
    given = f"--tasks demo_rte --models {encoder} --seeds 1 2 3 --lbe_betas 0 --precision fp32"
    return plan_runs(*parse_grid([*given.split(), *more]))


@pytest.mark.parametrize(
    ("listed", "count", "expected"),
    [(None, 0, []), (None, 2, ["0", "1"]), ("", 0, []), ("2, 7", 2, ["2", "7"]), ("GPU-8f,GPU-2c", 1, ["GPU-8f"])],
)
def test_those_that_this_process_sees(
    monkeypatch: pytest.MonkeyPatch, tiny_encoder: str, listed: str | None, count: int, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if listed is None:
        monkeypatch.delenv(VISIBLE, raising=False)
    else:
        monkeypatch.setenv(VISIBLE, listed)
    assert list(gpus_for(plan(tiny_encoder))) == expected
    assert gpus_for(plan(tiny_encoder, "--use_cpu", "true")) == ()


def test_a_run_at_a_time_on_each_unless_workers_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tiny_encoder: str
) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    runs = plan(tiny_encoder)
    for given, workers in (([], 2), (["--workers", "6"], 6), (["--workers", "1"], 1)):
        engine = choose_engine(parse_grid(given)[0], runs)
        assert isinstance(engine, LocalEngine)
        assert (engine.workers, list(engine.gpus)) == (workers, ["0", "1"])
