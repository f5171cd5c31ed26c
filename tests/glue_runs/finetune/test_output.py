"""Output folders that cannot be written are found before anything is done."""

import os
from pathlib import Path

import pytest

from glue_runs.errors import InputError
from glue_runs.finetune.output import begin, check_holds_one_run, check_is_own, check_output_dir, repository


def test_what_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_output_dir(tmp_path)
    check_output_dir(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(InputError, match=f"^{output} cannot be written, because {tmp_path / 'file'} is a file"):
            check_output_dir(output)


def test_repository_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repository("me/model", "out") == "me/model"
    assert repository(None, "runs/out") == "out"
    assert repository(None, "") == tmp_path.name


def test_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    if os.access(tmp_path / "out", os.W_OK):  # as for root, whom only a read-only file system stops
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "out")
    with pytest.raises(InputError, match=f"{tmp_path / 'out'} is read-only: give another --output_dir"):
        check_output_dir(tmp_path / "out" / "grid")


SETTINGS = {"learning_rate": 1e-3, "seed": 1, "task_name": "rte"}


def test_a_run_continues_no_other_one(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("of an earlier run")
    check_is_own(tmp_path, None, SETTINGS)
    begin(tmp_path, SETTINGS)
    assert not (tmp_path / "result.json").exists()
    check_is_own(tmp_path, None, SETTINGS)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(InputError, match="holds checkpoints of an earlier run: resume it with"):
        check_is_own(tmp_path, None, SETTINGS)
    for resumes_from in ("last", str(tmp_path / "checkpoint-3")):
        check_is_own(tmp_path, resumes_from, SETTINGS)
        with pytest.raises(InputError, match=r"of a run with --learning_rate 0.001, not 0.05: give that, or start"):
            check_is_own(tmp_path, resumes_from, {**SETTINGS, "learning_rate": 0.05})
    elsewhere = tmp_path / "elsewhere" / "checkpoint-1"
    elsewhere.mkdir(parents=True)
    check_is_own(elsewhere.parent / "new", str(elsewhere), SETTINGS)
    with pytest.raises(InputError, match=f"^{tmp_path} holds checkpoints of an earlier run"):
        check_is_own(tmp_path, str(elsewhere), SETTINGS)
    (tmp_path / "run.json").unlink()  # as of a run by an older version
    check_is_own(tmp_path, "last", {**SETTINGS, "seed": 2})


def test_only_one_run_is_pushed(tmp_path: Path) -> None:
    check_holds_one_run(tmp_path / "not_made_yet")
    for own in ("checkpoint-5/checkpoint-1", "_hidden/checkpoint-1", "logs"):
        (tmp_path / own).mkdir(parents=True)
    check_holds_one_run(tmp_path)
    (tmp_path / "trial" / "run-0" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"run-0/checkpoint-5 would be pushed with the model: give each run an --outp"
    ):
        check_holds_one_run(tmp_path)
