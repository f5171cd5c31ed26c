import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grids import made_up, made_up_grid

from glue_runs.analysis.report import main
from glue_runs.analysis.store import GridFolder
from glue_runs.errors import InputError

Change = Callable[[dict[str, Any]], Any]


def change(path: Path, how: Change) -> None:
    content = json.loads(path.read_text())
    changed = how(content)
    path.write_text(json.dumps(content if changed is None else changed))


def set_to(value: Any, *keys: Any) -> Change:
    """Set what lies under the keys."""

    def apply(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return apply


def without(key: str) -> Change:
    return lambda content: {name: value for name, value in content.items() if name != key}


@pytest.fixture
def folder(tmp_path: Path) -> GridFolder:
    return made_up_grid(tmp_path, [made_up(0.5, 0.5, 1), made_up(0.5, 0.6, 1, beta=0.05)])


def assert_one_line(folder: GridFolder, path: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder.path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} is ")
    assert message in error
    assert "delete it and start again" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("text", "what"), [("null", "null"), ("[]", "a list"), ("3", "a int"), ('"done"', "a str")])
@pytest.mark.parametrize("name", ["grid.json", "runs/run01/result.json"])
def test_json_of_another_kind(
    folder: GridFolder, name: str, text: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.path / name).write_text(text)
    assert_one_line(folder, folder.path / name, f"(it is {what})", capsys)
    with pytest.raises(InputError):
        folder.state("run01")


def test_json_nested_too_deeply(folder: GridFolder, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder.run_dir("run01") / "result.json"
    path.write_text("[" * 200_000)
    assert_one_line(folder, path, "is damaged", capsys)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        *((without(key), f"'{key}'") for key in ("metrics", "history", "layers", "environment", "seconds")),
        (set_to([], "metrics"), "'metrics' expected a dict"),
        (set_to({"loss": "low"}, "metrics", "test"), "'metrics'"),
        (set_to({}, "metrics", "test"), "it has no matthews_correlation of test"),
        (lambda record: record["metrics"].pop("validation") and None, "it has no matthews_correlation of validation"),
        (set_to({}, "environment"), "its environment has no device"),
        (set_to("60 s", "seconds"), "'seconds'"),
        (set_to("yes", "diverged"), "'diverged' expected bool"),
        (set_to([1], "history"), "'history'"),
        (set_to("0.5", "history", 0, "task_loss"), "'task_loss'"),
        (lambda record: record["history"][1].pop("lbe_loss") and None, "'lbe_loss'"),
        (set_to([0.1], "history", 1, "entropies"), "the entropies of step 20 are not one number per layer"),
        (set_to([None] * 3, "history", 1, "targets"), "the targets of step 20 are not one number per layer"),
        (set_to(0.5, "history", 1, "targets"), "'targets' expected a list"),
        (set_to([1, 2, 3], "layers"), "'layers'"),
        *(
            (set_to(value, key), f"it belongs to another run, whose {key} is {value!r}")
            for key, value in (
                *(("task", "rte"), ("seed", 2), ("learning_rate", 1.0), ("beta", 0.5), ("alpha", None)),
                *(("model", "another"), ("settings", {"max_length": 64})),
            )
        ),
        (without("seed"), "it belongs to another run, whose seed is None and not 1"),
    ],
)
def test_record_that_is_not_one_of_the_run(
    folder: GridFolder, how: Change, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder.run_dir("run01") / "result.json"
    change(path, how)
    assert_one_line(folder, path, message, capsys)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (without("runs"), "'runs'"),
        (without("commands"), "'commands'"),
        (set_to("python", "commands"), "'commands'"),
        (set_to([1], "commands"), "'commands'"),
        (set_to([], "runs"), "'runs'"),
        (set_to(None, "runs", "run00"), "'runs'"),
        (set_to({}, "runs", "run00"), "'task'"),
        (set_to("41", "runs", "run00", "seed"), "'seed' expected int"),
        (set_to("high", "runs", "run00", "learning_rate"), "'learning_rate'"),
        (set_to(None, "runs", "run00", "settings"), "'settings'"),
        (set_to("sst", "runs", "run00", "task"), "There is no task 'sst'"),
        (set_to("abc", "runs", "run00", "trained_on"), "'trained_on' expected a dict"),
        (set_to([1], "runs", "run00", "trained_on"), "'trained_on' expected a dict"),
        (set_to({"weights": 3}, "runs", "run00", "trained_on"), "'trained_on'"),
    ],
)
def test_grid_of_another_shape(
    folder: GridFolder, how: Change, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder.path / "grid.json", how)
    assert_one_line(folder, folder.path / "grid.json", message, capsys)


@pytest.mark.parametrize(
    "name", ["../../precious", "/precious", "..", ".", "", "a/b", "a\\b", ".hidden", "a\nb", "c:d"]
)
def test_names_that_are_no_plain_file_names(folder: GridFolder, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder.path / "grid.json", lambda grid: grid["runs"].update({name: grid["runs"]["run00"]}))
    assert_one_line(folder, folder.path / "grid.json", "has a name that is not a plain file name", capsys)


def test_numbers_of_many_digits(folder: GridFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """None is calculated with as an integer beyond all bounds."""
    for path, *keys in (
        ("runs/run01/result.json", "metrics", "validation", "matthews_correlation"),
        ("runs/run01/result.json", "history", 0, "task_loss"),
        ("grid.json", "runs", "run01", "learning_rate"),
        ("grid.json", "runs", "run01", "beta"),
    ):
        before = (folder.path / path).read_text()
        change(folder.path / path, set_to(-(10**400), *keys))
        assert_one_line(folder, folder.path / path, "is damaged (-1000000000000000000... has too many digits)", capsys)
        (folder.path / path).write_text(before)


def test_records_that_do_not_tell_whether_they_diverged(folder: GridFolder) -> None:
    assert [record["diverged"] for record in folder.records().values()] == [False, False]


def test_committed_results_are_read() -> None:
    results = Path(__file__).parents[3] / "results"
    for name, count in (("minilm", 135), ("mpnet", 10), ("cola", 36)):
        assert len(GridFolder(results / name).records()) == count
