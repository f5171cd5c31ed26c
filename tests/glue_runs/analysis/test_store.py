import json
import threading
from pathlib import Path
from typing import Any

import pytest

from glue_runs.analysis.store import GridFolder
from glue_runs.errors import InputError


def finish(folder: GridFolder, name: str, method: str, score: float) -> None:
    path = folder.folder(name)
    (path / "checkpoint-3").mkdir(parents=True)
    (path / "model.safetensors").write_text("weights")
    described = {"task": "rte", "model": "m", "protocol": "default", "fixed_settings": "", "method": method}
    (path / "result.json").write_text(json.dumps({**described, "metrics": {"validation": {"accuracy": score}}}))


@pytest.fixture
def folder(tmp_path: Path) -> GridFolder:
    folder = GridFolder(tmp_path / "grid")
    folder.add({name: {} for name in "abcd"}, "command")
    return folder


def test_what_is_wanted_adds_up(folder: GridFolder) -> None:
    folder.add({"e": {"seed": 1}, "a": {}}, "another command")
    folder.add({"e": {"seed": 1}}, "another command")
    assert list(folder.runs) == ["a", "b", "c", "d", "e"]
    assert folder.commands == ["command", "another command"]


def test_states(folder: GridFolder) -> None:
    finish(folder, "a", "baseline", 0.5)
    for name in "bce":
        folder.folder(name).mkdir()
    (folder.folder("b") / "error.txt").write_text("Traceback")
    with folder.lock("e"):
        assert [folder.state(name) for name in "abcde"] == ["done", "failed", "interrupted", "missing", "running"]
    assert folder.state("e") == "interrupted"


@pytest.mark.parametrize(("keep", "kept"), [("none", ""), ("best", "bd"), ("all", "abcd")])
def test_models_that_are_kept(folder: GridFolder, keep: str, kept: str) -> None:
    for name, score in zip("abc", (0.5, 0.7, float("nan")), strict=True):
        finish(folder, name, "baseline", score)
    finish(folder, "d", "LBE", 0.1)
    folder.folder("e").mkdir()  # not of this grid
    folder.tidy(keep)
    assert "".join(name for name in "abcd" if (folder.folder(name) / "model.safetensors").exists()) == kept
    assert not list(folder.path.glob("runs/*/checkpoint-*"))
    assert all(folder.result(name) for name in "abcd")
    assert folder.folder("e").exists()


def test_a_run_in_progress_keeps_its_checkpoints(folder: GridFolder) -> None:
    (folder.folder("a") / "checkpoint-3").mkdir(parents=True)
    folder.tidy("none")
    assert (folder.folder("a") / "checkpoint-3").exists()


def test_a_lock_has_one_holder(folder: GridFolder) -> None:
    seen: dict[str, Any] = {}

    def other() -> None:
        with folder.lock("a", timeout=0) as seen["meanwhile"]:
            pass

    with folder.lock("a", timeout=0) as ours:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    with folder.lock("a", timeout=0) as again:
        pass
    assert (ours, seen["meanwhile"], again) == (True, False, True)


def test_folder_that_is_not_a_grid(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no grid.json: it is not the folder of a grid"):
        _ = GridFolder(tmp_path).runs
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something that is not a grid: give another --output_dir"):
        GridFolder(tmp_path).add({}, "command")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_damaged_result(folder: GridFolder) -> None:
    finish(folder, "a", "baseline", 0.5)
    path = folder.folder("a") / "result.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(InputError, match=r"a/result.json is damaged .* delete it and start again"):
        folder.result("a")
