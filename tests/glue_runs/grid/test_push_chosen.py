"""The choice of the runs of a grid that are pushed, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from grids import description, made_up, made_up_grid

from glue_runs.grid import push_chosen as push_chosen_module
from glue_runs.grid.arguments import GridArguments
from glue_runs.grid.command import main as grid_main
from glue_runs.grid.plan import Run
from glue_runs.grid.push_chosen import choose_run, push_chosen


def test_the_chosen_run_is_of_the_setting_best_by_mean(tmp_path: Path) -> None:
    scores = {
        ("baseline", 0.0): (0.9, 0.9),
        ("LBE", 0.1): (0.8, 0.1),
        ("LBE", 0.2): (0.6, 0.7),
        ("LBE", 0.3): (0.5, 0.6),
    }
    records = [
        made_up(validation, 1 - validation, seed, beta=beta)
        for (_, beta), values in scores.items()
        for seed, validation in enumerate(values)
    ]
    folder = made_up_grid(tmp_path, records)
    shared = {"task": "cola", "model": "m", "protocol": "default", "fixed_settings": ""}
    other = description({**records[0], "fixed_settings": "max_length=64"})
    folder.add({"other": other}, "python -m glue_runs.grid")
    assert choose_run(folder, shared) == "run05"  # mean 0.65, seed 1
    (folder.run_dir("run05") / "model.safetensors").touch()
    folder.prune("none", folder.runs, also=["run05"])
    assert {path.parent.name for path in tmp_path.glob("runs/*/model.safetensors")} == {"run05"}
    folder.add({"open": description(records[0])}, "python -m glue_runs.grid")
    assert choose_run(folder, shared) is None


def test_a_grid_pushes_nothing_behind_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_up_grid(tmp_path / "grid", [made_up(0.5, 0.5, 1)])
    (folder.run_dir("run00") / "config.json").touch()
    (folder.path / "runs").rename(tmp_path / "private")
    (folder.path / "runs").symlink_to(tmp_path / "private")
    grid = GridArguments(output_dir=str(folder.path), hub_model_id_prefix="me/x", keep_models="none")
    run = Run("cola", "m", 1e-5, 1, None, None, 0.0, "default")
    assert not push_chosen(folder, grid, [run])
    assert f"error: cola: {folder.run_dir('run00')} is a link: links are not pushed" in capsys.readouterr().err
    assert (tmp_path / "private" / "run00" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--push_to_hub", "give --hub_model_id_prefix me/name"),
        ("--push_to_hub --hub_model_id_prefix me/x --models a b", "one of --models"),
        ("--push_to_hub --hub_model_id_prefix me/x/y", "me/x/y-demo_rte"),
        ("--hub_model_id me/x", "use --hub_model_id_prefix"),
    ],
)
def test_a_grid_that_cannot_be_pushed(arguments: str, message: str, tmp_path: Path, capfd: Any) -> None:
    assert grid_main(["--tasks", "demo_rte", "--output_dir", str(tmp_path / "grid"), *arguments.split()]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "grid").exists()


def test_the_repository_is_as_the_command_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the runs were finished by a command that did not push."""
    pushed = []
    monkeypatch.setattr(push_chosen_module, "push", lambda folder, options: pushed.append(options) or "url")
    folder = made_up_grid(tmp_path / "grid", [made_up(0.5, 0.5, 1)])
    grid = GridArguments(output_dir=str(folder.path), hub_model_id_prefix="me/x", keep_models="none")
    fixed = ("--hub_private_repo", "true", "--hub_revision", "v2")
    run = Run("cola", "m", 1e-5, 1, None, None, 0.0, "default", fixed=fixed)
    assert push_chosen(folder, grid, [run])
    assert [(options.hub_private_repo, options.hub_revision) for options in pushed] == [(True, "v2")]
