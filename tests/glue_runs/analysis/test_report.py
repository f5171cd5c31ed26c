import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from grids import made_up, made_up_grid

from glue_runs.analysis.report import main, write_report

SEEDS = (1, 2, 3)


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
    best, fixed = table(report, "LBE beside the baseline")
    assert (best["contest"], best["beta"]) == ("best of 2 settings", "0.05")
    assert (best["difference"], best["p"]) == ("+0.0300", "0.2500")  # 0.03, 0.02 and 0.04: 2 of 2^3 signs
    assert best["95% interval"] == "+0.0200 to +0.0400"
    assert (fixed["contest"], fixed["beta"]) == ("fixed in advance", "0.01")
    assert (fixed["difference"], fixed["p"]) == ("-0.0100", "0.2500")
    assert "unequal contest" in report
    assert "can hardly change" not in report


def test_faint_penalty_is_said(tmp_path: Path) -> None:
    records = [made_up(0.5, 0.5, s) for s in SEEDS] + [made_up(0.5, 0.5, s, beta=0.05, penalty=2e-4) for s in SEEDS]
    report = write_report(made_up_grid(tmp_path, records))
    assert "the penalty is 2.0e-04 of the task loss, so it can hardly change what is learned" in report
    assert "unequal" not in report  # one setting each


def test_two_seeds_give_no_statistics(tmp_path: Path) -> None:
    records = [made_up(0.5, 0.5, s) for s in (1, 2)] + [made_up(0.5, 0.6, s, beta=0.05) for s in (1, 2)]
    report = write_report(made_up_grid(tmp_path, records))
    (row,) = table(report, "LBE beside the baseline")
    assert (row["seeds"], row["difference"], row["95% interval"], row["p"]) == ("2", "+0.1000", "", "")
    assert "Fewer than 3 seeds give no interval and no p-value." in report


def test_open_runs_are_said_first_and_listed(tmp_path: Path, unequal: list[dict[str, Any]]) -> None:
    folder = made_up_grid(tmp_path, unequal, open_runs=("broken", "half", "later"))
    for name in ("broken", "half"):
        folder.folder(name).mkdir()
    (folder.folder("broken") / "error.txt").write_text("Traceback\n  ...\nRuntimeError: no memory\n")
    report = write_report(folder)
    first = report.splitlines()[0]
    assert first == "**Incomplete: 9 of 12 runs are done, 1 failed, 1 interrupted, 1 missing (listed at the end).**"
    tail = report.split("## Runs that are not done")[1]
    assert "- failed: broken: RuntimeError: no memory\n- interrupted: half\n- missing: later" in tail


def test_nothing_done_yet(tmp_path: Path) -> None:
    report = write_report(made_up_grid(tmp_path, [], open_runs=("later",)))
    assert report.startswith("**Incomplete: 0 of 1 runs are done, 1 missing")


def test_no_baseline_yet(tmp_path: Path) -> None:
    report = write_report(made_up_grid(tmp_path, [made_up(0.5, 0.5, 1, beta=0.05)]))
    (row,) = table(report, "LBE beside the baseline")
    assert (row["seeds"], row["difference"]) == ("0", "")


def test_runs_that_differ_in_what_is_fixed_are_not_compared(tmp_path: Path) -> None:
    """Seeds of one setting would otherwise be counted twice, and differences taken across setups."""
    records = []
    for fixed, gain in (("max_length=64", 0.1), ("max_length=128", 0.2)):
        records += [made_up(0.5, 0.5, seed, fixed_settings=fixed) for seed in SEEDS]
        records += [made_up(0.5, 0.5 + gain, seed, beta=0.05, fixed_settings=fixed) for seed in SEEDS]
    report = write_report(made_up_grid(tmp_path, records))
    scores, differences = table(report, "Test scores"), table(report, "LBE beside the baseline")
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
    assert "pip install 'lbe-hf[plot]'" in report
    assert len(table(report, "Test scores")) == 2
    assert not list(tmp_path.glob("*.png"))


def test_as_a_command(tmp_path: Path, unequal: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_up_grid(tmp_path / "grid", unequal)
    assert main([str(folder.path)]) == 0
    assert capsys.readouterr().out.startswith("All 9 runs are done.")
    result = folder.folder("run03") / "result.json"
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
