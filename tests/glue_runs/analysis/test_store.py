import json
import threading
from pathlib import Path
from typing import Any

import pytest
from grids import description, made_up

from glue_runs.analysis.store import GridFolder
from glue_runs.errors import InputError

WANTED = {name: made_up(0.5, 0.5, seed) for seed, name in enumerate("abc")} | {"d": made_up(0.1, 0.1, 0, beta=0.05)}


def finish(folder: GridFolder, name: str, score: float) -> None:
    path = folder.run_dir(name)
    (path / "checkpoint-3").mkdir(parents=True)
    (path / "model.safetensors").write_text("weights")
    record = WANTED[name]
    record = {**record, "metrics": {**record["metrics"], "validation": {"matthews_correlation": score}}}
    (path / "result.json").write_text(json.dumps(record))


@pytest.fixture
def folder(tmp_path: Path) -> GridFolder:
    folder = GridFolder(tmp_path / "grid")
    folder.add({name: description(record) for name, record in WANTED.items()}, "command")
    return folder


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder outside the grid that looks like a finished run of it."""
    path = tmp_path / "precious"
    path.mkdir()
    (path / "letters").mkdir()
    (path / "thesis.tex").touch()
    (path / "result.json").write_text(json.dumps(WANTED["a"]))
    return path


def test_what_is_wanted_adds_up(folder: GridFolder) -> None:
    more = {name: description(made_up(0.5, 0.5, seed)) for name, seed in (("e", 5), ("a", 0))}
    folder.add(more, "another command")
    folder.add({"e": more["e"]}, "another command")
    assert list(folder.runs) == ["a", "b", "c", "d", "e"]
    assert folder.runs["e"] == more["e"]
    assert folder.commands == ["command", "another command"]


def test_the_record_of_another_run_under_the_name_of_a_wanted_one(folder: GridFolder) -> None:
    finish(folder, "a", 0.5)
    with pytest.raises(InputError, match=r"a/result.json is not the record .* whose seed is 0 and not 7"):
        folder.add({"a": description(made_up(0.5, 0.5, 7))}, "another command")
    assert folder.commands == ["command"]


def test_what_a_run_is_called_is_what_the_grid_calls_it(folder: GridFolder) -> None:
    """Two commands may call the same run, which has the same settings, by different names of the protocol."""
    finish(folder, "a", 0.5)
    folder.add({"a": {**description(WANTED["a"]), "protocol": "authors"}}, "another command")
    assert folder.records()["a"]["protocol"] == "authors"


def test_states(folder: GridFolder) -> None:
    finish(folder, "a", 0.5)
    for name in "bce":
        folder.run_dir(name).mkdir()
    (folder.run_dir("b") / "error.txt").write_text("Traceback")
    with folder.lock("e"):
        assert [folder.state(name) for name in "abcde"] == ["done", "failed", "interrupted", "missing", "running"]
    assert folder.state("e") == "interrupted"


def test_states_without_a_grid(tmp_path: Path) -> None:
    assert GridFolder(tmp_path).state("a") == "missing"


@pytest.mark.parametrize(("keep", "kept"), [("none", ""), ("best", "bd"), ("all", "abcd")])
def test_models_that_are_kept(folder: GridFolder, keep: str, kept: str) -> None:
    for name, score in zip("abcd", (0.5, 0.7, float("nan"), 0.1), strict=True):
        finish(folder, name, score)
    folder.run_dir("e").mkdir()  # not of this grid
    folder.prune(keep, folder.runs)
    assert "".join(name for name in "abcd" if (folder.run_dir(name) / "model.safetensors").exists()) == kept
    assert not list(folder.path.glob("runs/*/checkpoint-*"))
    assert all(folder.result(name) for name in "abcd")
    assert folder.run_dir("e").exists()


def test_only_the_runs_of_a_command_are_pruned_and_only_their_checkpoints(folder: GridFolder) -> None:
    for name in "ab":
        finish(folder, name, 0.5)
        (folder.run_dir(name) / "runs").mkdir()  # of TensorBoard
    folder.prune("none", ["b"])
    assert {path.name for path in folder.run_dir("a").iterdir()} == {
        "checkpoint-3", "model.safetensors", "result.json", "runs"
    }  # fmt: skip
    assert {path.name for path in folder.run_dir("b").iterdir()} == {"result.json", "runs"}


def test_a_grid_whose_file_was_deleted_is_still_one(folder: GridFolder) -> None:
    finish(folder, "a", 0.5)
    (folder.path / "report.md").touch()
    (folder.path / "grid.json").unlink()
    folder.add({"a": description(WANTED["a"])}, "command")
    assert folder.state("a") == "done"


def test_a_run_in_progress_keeps_its_checkpoints(folder: GridFolder) -> None:
    (folder.run_dir("a") / "checkpoint-3").mkdir(parents=True)
    folder.prune("none", folder.runs)
    assert (folder.run_dir("a") / "checkpoint-3").exists()


@pytest.mark.parametrize("behind", ["run", "runs"])
def test_a_linked_run_is_read_but_nothing_behind_it_is_deleted(
    folder: GridFolder, precious: Path, behind: str
) -> None:
    wanted = {"precious": description(WANTED["a"])}
    if behind == "run":
        folder.run_dir("precious").symlink_to(precious)
    else:
        (folder.path / "runs").rmdir()
        (folder.path / "runs").symlink_to(precious.parent)
    folder.add(wanted, "command")
    folder.prune("none", folder.runs)
    assert {path.name for path in precious.iterdir()} == {"letters", "thesis.tex", "result.json"}
    assert folder.state("precious") == "done"
    (precious / "result.json").unlink()
    assert folder.state("precious") == "interrupted"
    with pytest.raises(InputError, match="runs/precious is a link, or inside one; runs are not resumed there"):
        folder.add(wanted, "command")  # the grid would go on to do the run, and empty the folder first


def test_links_in_a_run_are_removed_and_not_followed(folder: GridFolder, precious: Path) -> None:
    finish(folder, "a", 0.5)
    (folder.run_dir("a") / "checkpoint-4").symlink_to(precious)
    (folder.run_dir("a") / "weights").symlink_to(precious / "thesis.tex")
    folder.prune("none", folder.runs)
    assert [path.name for path in folder.run_dir("a").iterdir()] == ["result.json"]
    assert {path.name for path in precious.iterdir()} == {"letters", "thesis.tex", "result.json"}


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


def test_a_lock_that_cannot_be_written(folder: GridFolder) -> None:
    (folder.path / "locks").rename(folder.path / "away")
    (folder.path / "locks").touch()
    with pytest.raises(InputError, match=r"locks/a.lock cannot be written .* make .*grid writable"), folder.lock("a"):
        pass


def test_folder_that_is_not_a_grid(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no grid.json: it is not the folder of a grid"):
        _ = GridFolder(tmp_path).runs
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something that is not a grid: give another --output_dir"):
        GridFolder(tmp_path).add({}, "command")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_damaged_result(folder: GridFolder) -> None:
    finish(folder, "a", 0.5)
    path = folder.run_dir("a") / "result.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(InputError, match=r"a/result.json is damaged .* delete it and start again"):
        folder.result("a")


NOW = {"weights": "w", "tokenizer": "t", "examples": "e"}
CHANGED = {"weights": "other", "tokenizer": "t", "examples": "other"}


def trained_on(digests: dict[str, str] | None, *seeds: int, **more: Any) -> dict[str, dict[str, Any]]:
    """Descriptions of runs that differ in their seed, named by it."""
    added = {} if digests is None else {"trained_on": digests}
    return {f"seed{seed}": {**description(made_up(0.5, 0.5, seed, **more)), **added} for seed in seeds}


def begin(folder: GridFolder, name: str, with_targets: bool = True) -> None:
    """Leave a checkpoint."""
    checkpoint = folder.run_dir(name) / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    for part in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / part).touch()
    if with_targets:
        (checkpoint / "lbe_targets.safetensors").touch()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 3}))


def digests_of(folder: GridFolder) -> dict[str, Any]:
    return {name: run.get("trained_on") for name, run in folder.runs.items()}


def test_runs_that_have_not_begun_follow_what_is_wanted_now(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    folder.add(trained_on(NOW, 1, 2), "one")
    (folder.run_dir("seed1")).mkdir()
    (folder.run_dir("seed1") / "error.txt").touch()  # it failed, and starts anew
    folder.add(trained_on(CHANGED, 3), "another")
    assert digests_of(folder) == {"seed1": CHANGED, "seed2": CHANGED, "seed3": CHANGED}


@pytest.mark.parametrize("how", ["checkpoint", "at work"])
@pytest.mark.parametrize("seed", [1, 3])
def test_runs_that_are_compared_are_trained_on_the_same(tmp_path: Path, how: str, seed: int) -> None:
    """Whether the one that has begun is wanted again or another one is added to it."""
    folder = GridFolder(tmp_path)
    folder.add(trained_on(NOW, 1, 2), "one")
    begin(folder, "seed1", with_targets=how == "checkpoint")
    message = r"seed1 was trained on other weights and examples than .* another --output_dir, or delete .*seed1\."
    with folder.lock("seed1" if how == "at work" else "other"):
        with pytest.raises(InputError, match=message):
            folder.add(trained_on(CHANGED, seed), "another")
        folder.add(trained_on(NOW, seed), "another")
        folder.add({"a": trained_on(CHANGED, 1, fixed_settings="max_length=64")["seed1"]}, "not compared")
    assert set(map(str, digests_of(folder).values())) == {str(NOW), str(CHANGED)}


@pytest.mark.parametrize(("with_targets", "begun"), [(True, True), (False, False)])
def test_a_checkpoint_without_its_targets_is_none(tmp_path: Path, with_targets: bool, begun: bool) -> None:
    folder = GridFolder(tmp_path)
    wanted = trained_on(NOW, 1, beta=0.05)
    folder.add(wanted, "command")
    begin(folder, "seed1", with_targets)
    assert folder.has_begun("seed1", wanted["seed1"]) is begun


def test_runs_that_began_before_digests_were_recorded_stay_unchecked(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path)
    folder.add(trained_on(None, 1, 2), "one")
    begin(folder, "seed1")
    for _ in range(2):  # they do not become checked by being asked for
        folder.add(trained_on(NOW, 1, 2), "one")
        assert digests_of(folder) == {"seed1": None, "seed2": NOW}
