"""Which engine executes the runs, and what is asked of it."""

from collections.abc import Generator
from pathlib import Path

import pytest

from glue_runs.analysis.store import GridFolder
from glue_runs.errors import InputError
from glue_runs.grid import engines
from glue_runs.grid.arguments import parse_grid
from glue_runs.grid.engines import LocalEngine, choose_engine, work
from glue_runs.grid.plan import Run, plan_runs


def plan(encoder: str, *more: str) -> list[Run]:
    given = f"--tasks demo_rte --models {encoder} --learning_rates 1e-3 --seeds 1 2 --lbe_alphas 0.5 --lbe_betas 0.05"
    return plan_runs(*parse_grid([*given.split(), "--max_steps", "1", "--precision", "fp32", *more]))


def make_folder(path: Path, runs: list[Run]) -> GridFolder:
    folder = GridFolder(path)
    folder.add({run.name: run.description for run in runs}, "command")
    return folder


class Recorder:
    """An engine that does nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def work(self, folder: GridFolder, runs: list[Run]) -> Generator[str | None]:
        for run in runs:
            self.asked.append(run.name)
            yield f"{run.name}: seen"


@pytest.mark.parametrize("engine", [LocalEngine(), LocalEngine(workers=2, threads=1)], ids=["here", "two processes"])
def test_only_what_is_not_done_is_asked_for(
    engine: LocalEngine, tiny_encoder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = plan(tiny_encoder)
    folder = make_folder(tmp_path, runs)
    work(engine, folder, {run.name: run for run in runs[:2]}, "all")
    done = [run.name for run in runs if folder.state(run.name) == "done"]
    assert done == [run.name for run in runs[:2]]
    printed = capfd.readouterr().out
    assert all(f"{name}: " in printed for name in done)
    recorder = Recorder()
    work(recorder, folder, {run.name: run for run in runs}, "all")
    assert recorder.asked == [run.name for run in runs[2:]]


@pytest.mark.parametrize("error", [InputError("grid.json is damaged."), PermissionError(13, "Permission denied")])
def test_models_that_cannot_be_deleted_do_not_stop_the_runs(
    error: Exception,
    tiny_encoder: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(GridFolder, "prune", fail)
    runs = plan(tiny_encoder)
    recorder = Recorder()
    work(recorder, make_folder(tmp_path, runs), {run.name: run for run in runs}, "best")
    assert recorder.asked == [run.name for run in runs]
    assert f"Nothing was pruned: {error}" in capfd.readouterr().out


def test_the_engine_follows_from_the_arguments(tiny_encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(engines, "RayEngine", lambda *arguments: made.append(arguments))
    here = ["--workers", "2", "--cpus_per_run", "3", "--max_retries", "5"]
    there = "--engine ray --ray_address host:6379 --cpus_per_run 2 --gpus_per_run 0.5 --max_retries 7".split()
    runs = plan(tiny_encoder)
    given = ["--models", tiny_encoder]
    assert choose_engine(parse_grid([*given, *here])[0], runs) == LocalEngine(workers=2, threads=3, max_retries=5)
    choose_engine(parse_grid([*given, *there])[0], runs)
    assert made == [("host:6379", 2, 0.5, 7)]
