import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from grids import ENVIRONMENT, made_up, made_up_grid

from glue_runs.analysis.report import main, write_report

SEEDS = (1, 2, 3)


@pytest.fixture
def figures() -> None:
    """For tests that need the figures, which take seconds; `test_figures.py` looks at them."""


@pytest.fixture(autouse=True)
def draw_only_if_asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "figures" not in request.fixturenames:
        monkeypatch.setattr("glue_runs.analysis.figures.draw", lambda *args: [])


def table(report: str, heading: str) -> list[dict[str, str]]:
    """The rows of the table below a heading."""
    below = report.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line[2:-2].split(" | ") for line in below.splitlines() if line.startswith("| ")]
    header, _, *rows = lines
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture
def unequal() -> list[dict[str, Any]]:
    """Two LBE settings, of which validation prefers the one that is not fixed in advance."""
    baseline = [made_up(0.5, test, seed) for seed, test in zip(SEEDS, (0.50, 0.60, 0.70), strict=True)]
    middle = [made_up(0.4, test, s, beta=0.01) for s, test in zip(SEEDS, (0.49, 0.59, 0.69), strict=True)]
    best = [made_up(0.6, test, s, beta=0.05) for s, test in zip(SEEDS, (0.53, 0.62, 0.74), strict=True)]
    return baseline + middle + best


def test_scores(tmp_path: Path, unequal: list[dict[str, Any]]) -> None:
    report = write_report(made_up_grid(tmp_path, unequal))
    assert report.startswith("All 9 runs are done.\n")
    baseline, lbe = table(report, "Test scores")
    assert baseline == {
        **{"task": "cola", "model": "m", "protocol": "default", "fixed settings": ""},
        **{"metric": "matthews correlation"},
        **{"method": "baseline", "learning rate": "1e-05", "alpha": "", "beta": "0", "seeds": "3"},
        **{"validation": "0.5000", "mean": "0.6000", "std": "0.1000", "median": "0.6000"},
        **{"min": "0.5000", "max": "0.7000", "penalty": ""},
    }
    assert (lbe["beta"], lbe["mean"], lbe["penalty"]) == ("0.05", "0.6300", "1.0e-02")


def test_best_of_several_settings_and_the_one_fixed_in_advance(tmp_path: Path, unequal: list[dict[str, Any]]) -> None:
    report = write_report(made_up_grid(tmp_path, unequal))
    best, fixed = table(report, "LBE against the baseline")  # at a single learning rate there is no other contest
    assert (best["contest"], best["beta"]) == ("best of 2 settings", "0.05")
    assert (best["difference"], best["p"]) == ("+0.0300", "0.2500")  # 0.03, 0.02 and 0.04: 2 of 2^3 signs
    assert best["95% interval"] == "+0.0052 to +0.0548"  # 0.03 +- 4.303 * 0.01 / sqrt(3)
    assert (fixed["contest"], fixed["beta"]) == ("fixed in advance", "0.01")
    assert (fixed["difference"], fixed["p"]) == ("-0.0100", "0.2500")
    assert [row["p (Holm)"] for row in (best, fixed)] == ["0.5000", "0.5000"]
    assert "The number of comparisons is 2. p (Holm) is corrected for the 2 comparisons that have a p" in report
    assert "they assume that the differences of the seeds are independent and normally distributed" in report
    assert "same learning rates" not in report
    assert "unequal contest" in report
    assert "can hardly change" not in report


def test_ahead_at_its_own_rate_behind_at_the_same_ones(tmp_path: Path) -> None:
    records = []
    for seed in SEEDS:
        for rate, baseline, lbe in ((1e-5, 0.5, 0.4), (3e-5, 0.7, 0.6)):
            records.append(made_up(1 - rate, baseline, seed, learning_rate=rate))  # validation: the low rate
            records.append(made_up(rate, lbe, seed, learning_rate=rate, beta=0.05))  # validation: the high rate
    report = write_report(made_up_grid(tmp_path, records))
    own, same = table(report, "LBE against the baseline")
    assert (own["contest"], own["learning rate"], own["difference"]) == ("one setting", "3e-05", "+0.1000")
    assert (same["contest"], same["learning rate"]) == ("one setting, same learning rates", "1e-05, 3e-05")
    assert (same["seeds"], same["difference"], same["95% interval"]) == ("3", "-0.1000", "")
    assert "At the same learning rates, the rates that validation chose play no part" in report


def test_pairs_that_are_left_out_are_counted(tmp_path: Path) -> None:
    rates = {1: (1e-5, 3e-5), 2: (1e-5, 3e-5), 3: (1e-5, 3e-5), 4: (5e-5,)}
    records = [
        made_up(0.5, 0.5, seed, beta=beta, learning_rate=rate)
        for seed, own in rates.items()
        for rate in own
        for beta in (0.0, 0.05)
    ]
    report = write_report(made_up_grid(tmp_path, records))
    assert "one setting, same learning rates: 1 of 7 pairs of runs are left out" in report


def test_pairs_of_different_devices_are_counted(tmp_path: Path) -> None:
    elsewhere = {"environment": {**ENVIRONMENT, "device": "slide rule"}}
    records = [made_up(0.5, 0.5, seed) for seed in SEEDS]
    records += [made_up(0.5, 0.5, seed, beta=0.05, **(elsewhere if seed == SEEDS[0] else {})) for seed in SEEDS]
    report = write_report(made_up_grid(tmp_path, records))
    assert "one setting: in 1 of 3 pairs the two runs are of different devices" in report


def test_a_method_with_a_bar_is_one_cell(tmp_path: Path) -> None:
    records = [made_up(0.5, 0.5, 1, beta=0.05, method="LBE on .*query|.*key")]
    report = write_report(made_up_grid(tmp_path, records))
    lines = [line for line in report.splitlines() if "query" in line and line.startswith("|")]
    assert len(lines) == 2
    for line in lines:
        assert r"| LBE on .*query\|.*key |" in line


def test_runs_that_are_unchecked_are_counted(tmp_path: Path) -> None:
    folder = made_up_grid(tmp_path, [made_up(0.5, 0.5, 1), made_up(0.5, 0.5, 2)])
    grid = json.loads((tmp_path / "grid.json").read_text())
    grid["runs"]["run00"]["trained_on"] = {"weights": "w"}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    assert "1 of the finished runs began before what they are trained on was recorded" in write_report(folder)
    grid["runs"]["run01"]["trained_on"] = {"weights": "w"}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    assert "was recorded" not in write_report(folder)


def test_what_utf_8_cannot_encode_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up_grid(tmp_path, [made_up(0.5, 0.5, 1, model="m \U0001f600")])
    assert main([str(tmp_path)]) == 0
    assert "m \U0001f600" in (tmp_path / "report.md").read_text(encoding="utf-8")
    capsys.readouterr()
    made_up_grid(tmp_path / "odd", [made_up(0.5, 0.5, 1, model="m\ud800")])
    assert main([str(tmp_path / "odd")]) == 2
    error = capsys.readouterr().err
    assert "odd/grid.json is damaged" in error
    assert error.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr() == ("usage: python -m glue_runs.report FOLDER\n", "")


def test_faint_penalty_is_said(tmp_path: Path) -> None:
    records = [made_up(0.5, 0.5, s) for s in SEEDS] + [made_up(0.5, 0.5, s, beta=0.05, penalty=2e-4) for s in SEEDS]
    report = write_report(made_up_grid(tmp_path, records))
    assert "the penalty is 2.0e-04 of the task loss, so it can hardly change what is learned" in report
    assert "unequal" not in report  # one setting each


def test_two_seeds_give_no_statistics(tmp_path: Path) -> None:
    records = [made_up(0.5, 0.5, s) for s in (1, 2)] + [made_up(0.5, 0.6, s, beta=0.05) for s in (1, 2)]
    report = write_report(made_up_grid(tmp_path, records))
    (row,) = table(report, "LBE against the baseline")
    assert (row["seeds"], row["difference"], row["95% interval"], row["p"]) == ("2", "+0.1000", "", "")
    assert "With fewer than 3 seeds there is no interval and no p-value." in report
    assert "The number of comparisons is 1." in report
    assert "Holm) is corrected" not in report


def test_open_runs_are_said_first_and_listed(tmp_path: Path, unequal: list[dict[str, Any]]) -> None:
    folder = made_up_grid(tmp_path, unequal, open_runs=("broken", "half", "later"))
    for name in ("broken", "half"):
        folder.run_dir(name).mkdir()
    (folder.run_dir("broken") / "error.txt").write_text("Traceback\n  ...\nRuntimeError: no memory\n")
    report = write_report(folder)
    first = report.splitlines()[0]
    assert first == "**Incomplete: 9 of 12 runs are done, 1 failed, 1 interrupted, 1 missing (listed at the end).**"
    tail = report.split("## Runs that are not done")[1]
    assert "- failed: broken: RuntimeError: no memory\n- interrupted: half\n- missing: later" in tail


def test_runs_that_diverged_are_counted(tmp_path: Path) -> None:
    records = [made_up(0.5, 0.5, seed, diverged=seed == 2) for seed in SEEDS]
    folder = made_up_grid(tmp_path, [*records, made_up(0.5, 0.6, 1, beta=0.05)])
    report = write_report(folder)
    assert report.startswith(
        "All 4 runs are done. 1 of the finished runs diverged; their scores are included unchanged.\n"
    )
    assert [row["diverged"] for row in table(report, "Test scores")] == ["1", "0"]
    assert "A setting with a run that diverged is chosen only if every setting of the method has one." in report
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["diverged"] for row in rows] == ["False", "True", "False", "False"]
    assert folder.state("run01") == "done"


def test_a_test_score_that_is_not_a_number_is_not_left_out(tmp_path: Path) -> None:
    nan = float("nan")
    records = [made_up(0.5, nan if seed == 2 else 0.5, seed) for seed in SEEDS]
    report = write_report(made_up_grid(tmp_path, [*records, *(made_up(0.5, 0.6, s, beta=0.05) for s in SEEDS)]))
    baseline, _ = table(report, "Test scores")
    assert [baseline[column] for column in ("mean", "std", "median", "min", "max")] == ["nan"] * 5
    (row,) = table(report, "LBE against the baseline")
    assert (row["seeds"], row["difference"], row["95% interval"], row["p"]) == ("3", "+nan", "", "")


def test_a_method_that_nothing_can_be_chosen_for_is_named(tmp_path: Path) -> None:
    broken = made_up(float("nan"), 0.6, 1, beta=0.05)
    report = write_report(made_up_grid(tmp_path, [made_up(0.5, 0.5, 1), broken]))
    assert [row["method"] for row in table(report, "Test scores")] == ["baseline"]
    assert "- cola, LBE on hidden_states: no setting is chosen" in report
    assert "- cola, LBE on hidden_states: no setting is chosen" in write_report(made_up_grid(tmp_path / "x", [broken]))


def test_nothing_done_yet(tmp_path: Path) -> None:
    report = write_report(made_up_grid(tmp_path, [], open_runs=("later",)))
    assert report.startswith("**Incomplete: 0 of 1 runs are done, 1 missing")


def test_no_baseline_yet(tmp_path: Path) -> None:
    report = write_report(made_up_grid(tmp_path, [made_up(0.5, 0.5, 1, beta=0.05)]))
    (row,) = table(report, "LBE against the baseline")
    assert (row["seeds"], row["difference"]) == ("0", "")


def test_runs_that_differ_in_what_is_fixed_are_not_compared(tmp_path: Path) -> None:
    """Seeds of one setting would otherwise be counted twice, and differences taken across setups."""
    records = []
    for fixed, gain in (("max_length=64", 0.1), ("max_length=128", 0.2)):
        records += [made_up(0.5, 0.5, seed, fixed_settings=fixed) for seed in SEEDS]
        records += [made_up(0.5, 0.5 + gain, seed, beta=0.05, fixed_settings=fixed) for seed in SEEDS]
    report = write_report(made_up_grid(tmp_path, records))
    scores, differences = table(report, "Test scores"), table(report, "LBE against the baseline")
    assert [(row["fixed settings"], row["seeds"]) for row in scores] == [
        *[("max_length=64", "3")] * 2,
        *[("max_length=128", "3")] * 2,
    ]
    assert [(row["fixed settings"], row["seeds"], row["difference"]) for row in differences] == [
        ("max_length=64", "3", "+0.1000"),
        ("max_length=128", "3", "+0.2000"),
    ]


def test_second_test_set_has_rows_of_its_own(tmp_path: Path) -> None:
    records = []
    for record in (made_up(0.5, 0.6, 1, task="mnli"), made_up(0.5, 0.7, 1, beta=0.05, task="mnli")):
        record["metrics"]["test_mismatched"] = {"loss": 1.0, "accuracy": 0.8}
        records.append(record)
    report = write_report(made_up_grid(tmp_path, records))
    assert [row["task"] for row in table(report, "Test scores")] == ["mnli", "mnli mismatched"] * 2


def test_csv(tmp_path: Path, unequal: list[dict[str, Any]]) -> None:
    write_report(made_up_grid(tmp_path, unequal))
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["name"] for row in rows] == [f"run{index:02d}" for index in range(9)]
    assert rows[0]["alpha"] == ""
    assert (rows[8]["test"], rows[8]["test_matthews_correlation"], rows[8]["test_loss"]) == ("0.74", "0.74", "0.6")
    assert (rows[8]["seconds"], rows[8]["penalty"]) == ("60.0", "0.01")


def test_without_matplotlib_the_tables_still_come(
    tmp_path: Path, unequal: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    report = write_report(made_up_grid(tmp_path, unequal))
    assert "pip install matplotlib" in report
    assert len(table(report, "Test scores")) == 2
    assert not list(tmp_path.glob("*.png"))


def test_as_a_command(
    figures: None, tmp_path: Path, unequal: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_up_grid(tmp_path / "grid", unequal)
    assert main([str(folder.path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("All 9 runs are done.")
    assert "![scores](scores.png)" in printed
    assert (folder.path / "scores.png").stat().st_size > 1000
    result = folder.run_dir("run03") / "result.json"
    result.write_text(result.read_text()[:100])
    for arguments, message in (
        ([str(tmp_path)], "is not the folder of a grid"),
        ([str(folder.path)], "run03/result.json is damaged"),
        ([], "usage:"),
        (["one", "two"], "usage:"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_folder_that_cannot_be_written(
    tmp_path: Path, unequal: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_grid(tmp_path, unequal)
    (tmp_path / "report.md").mkdir()  # a folder where the file should be
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: The report cannot be written to {tmp_path} (")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("*.tmp"))

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "report.md").rmdir()
    for name in ("os.fsync", "filelock.FileLock.acquire"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            assert main([str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "No space left on device" in error
        assert error.count("\n") == 1
    assert main([str(tmp_path)]) == 0


def test_figure_that_cannot_be_written(
    figures: None, tmp_path: Path, unequal: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    made_up_grid(tmp_path, unequal)
    (tmp_path / "scores.png").mkdir()
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: The report cannot be written to")


def test_stopped_while_it_is_drawn(
    tmp_path: Path, unequal: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    folder = made_up_grid(tmp_path, unequal)
    with monkeypatch.context() as patch:
        patch.setattr("glue_runs.analysis.report._figures", stop)
        assert main([str(tmp_path)]) == 130
    assert capsys.readouterr().err == "Stopped; the same command makes the report again.\n"
    with folder.lock("report", timeout=0) as free:
        assert free
    assert main([str(tmp_path)]) == 0
