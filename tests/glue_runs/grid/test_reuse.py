import json
from pathlib import Path

import grids
import pytest

from glue_runs.analysis.store import GridFolder
from glue_runs.errors import InputError
from glue_runs.grid.plan import Run, parse_grid, plan_runs
from glue_runs.grid.reuse import describe

MODEL = "path/to/model"
NOW = {("rte", MODEL): {"weights": "w", "tokenizer": "t", "examples": "e"}}
CHANGED = {("rte", MODEL): {"weights": "other", "tokenizer": "t", "examples": "other"}}


@pytest.fixture
def runs() -> list[Run]:
    arguments = f"--tasks rte --models {MODEL} --seeds 1 --learning_rates 1e-5 --lbe_alphas 0.5 --lbe_betas 0.01"
    return plan_runs(*parse_grid([*arguments.split(), "--precision", "fp32"]))


def begin(folder: GridFolder, run: Run, file: str, content: str = "") -> None:
    path = folder.run_dir(run.name) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def finish(folder: GridFolder, run: Run) -> None:
    record = {**grids.made_up(0.5, 0.5, run.seed, task=run.task), **run.description}
    begin(folder, run, "result.json", json.dumps(record))


def test_what_is_recorded_is_found_again(runs: list[Run], tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    folder.add(describe(folder, runs, NOW), "")
    assert [run["trained_on"] for run in folder.runs.values()] == list(NOW.values()) * 2
    finish(folder, runs[0])
    assert describe(folder, runs, NOW) == folder.runs


def test_a_result_of_something_else_is_refused(runs: list[Run], tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    folder.add(describe(folder, runs, NOW), "")
    assert describe(folder, runs, CHANGED)[runs[1].name]["trained_on"]["weights"] == "other"  # not begun
    begin(folder, runs[1], "error.txt")
    describe(folder, runs, CHANGED)  # it failed, and starts anew
    for part in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        begin(folder, runs[1], f"checkpoint-3/{part}")
    begin(folder, runs[1], "checkpoint-3/trainer_state.json", json.dumps({"global_step": 3}))
    message = rf"{runs[1].name} was trained on other weights and examples .* another --output_dir, or delete .*\."
    with pytest.raises(InputError, match=message):
        describe(folder, runs, CHANGED)


def test_results_from_before_are_reused_unchecked(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = GridFolder(tmp_path)
    folder.add({run.name: run.description for run in runs}, "")
    finish(folder, runs[0])
    capsys.readouterr()
    for _ in range(2):  # they do not become checked by being asked for
        descriptions = describe(folder, runs, NOW)
        folder.add(descriptions, "")
        assert [("trained_on" in descriptions[run.name]) for run in runs] == [False, True]
        assert capsys.readouterr().out.startswith("1 runs were begun before what they are trained on was recorded")
