"""The page of the study has what its runs have, and the file has all runs of the study."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from programs import ROOT, program

FOLDER = ROOT / "results" / "deep_bert"


@pytest.fixture(scope="module")
def page() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def printed() -> str:
    command = [sys.executable, str(FOLDER / "report.py"), "--tables"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_tables_are_those_of_the_runs(page: str, printed: str) -> None:
    tables = [[line for line in text.splitlines() if line.startswith("|")] for text in (printed, page)]
    assert tables[0] == tables[1]
    assert len(tables[0]) > 20
    assert set(printed.splitlines()[1:]) <= set(page.splitlines())  # the first line counts the runs


def test_the_summary_has_only_numbers_of_the_tables(page: str, printed: str) -> None:
    summary = " ".join(page[: page.index("## What was done")].split())
    prose = summary[: summary.index("## A lower learning rate")] + summary[summary.index("## In short") :]
    shares = re.findall(r"\b\d+ of \d+\b", prose)
    decimals = re.findall(r"\b\d+\.\d+\b", prose)
    medians = re.findall(r"(?:median of |\()(\d+) steps\b", prose)
    assert len(shares) > 20
    assert len(decimals) > 20
    assert medians == ["120", "100", "80"]
    assert set(shares) <= set(re.findall(r"\b\d+ of \d+\b", printed.replace("/", " of ")))
    assert set(decimals) <= set(re.findall(r"\b\d+\.\d+\b", printed))
    assert all(f"| {median} (" in printed for median in medians)


def test_the_page_says_how_many_tests_it_makes(page: str) -> None:
    report = program("results/deep_bert/report.py")
    sections = re.findall(r"## p-values.*?(?=\n## )", page, re.DOTALL)
    cells = re.findall(r"\| [\d.e-]+ \([\d.e-]+\) (?=\|)", "".join(sections))
    tests = report.all_tests(report.load()[1])
    assert len(tests) == len(cells) + 1 == 22  # the test of the border is in a sentence
    assert "the page has 22" in page
    assert tests["holm"].notna().all()


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    corrected = program("results/deep_bert/report.py").holm(pd.Series([0.01, 0.04, 0.03, 0.9], index=list("abcd")))
    assert corrected[list("abcd")].to_list() == pytest.approx([0.04, 0.09, 0.09, 0.9])


def test_the_border_counts_a_seed_once() -> None:
    """Five seeds that all gain have a p-value of 2 / 2^5, in however many cells."""
    report = program("results/deep_bert/report.py")
    runs = report.load()[1]
    assert report.border_test(runs[runs["seed"] < 5]) == pytest.approx(2 / 2**5)


def test_layers_that_collapse_at_a_beta_of_a_fifth_or_more(page: str) -> None:
    runs = program("results/deep_bert/report.py").load()[1]
    (collapsed,) = runs[(runs["beta"] >= 0.2) & runs["collapsed"]]["learning_rate"]
    assert collapsed == 2e-3
    lines = pd.read_csv(program("results/deep_bert/study.py").RUNS)
    lines = lines[lines["beta"] >= 0.2]
    ever = (lines.filter(like="entropy/").min(axis="columns") < 1e-3).groupby(lines["run"]).any()
    claim = f"a layer is collapsed at the end in 1 of the {len(ever)} runs, one at 2e-3;"
    claim = f"With LBE at a beta of 0.2 or more {claim} for a while one is in {ever.sum()}."
    assert claim in " ".join(page.split())


def test_no_run_is_missing() -> None:
    study = program("results/deep_bert/study.py")
    planned = {run.name: run for run in study.runs()}
    assert len(planned) == len(set(planned.values())) == 330  # each name is one run
    assert set(pd.read_csv(study.RUNS)["run"]) == set(planned)


def test_a_line_of_the_file_is_of_the_run_it_names() -> None:
    study = program("results/deep_bert/study.py")
    planned = {run.name: run for run in study.runs()}
    lines = pd.read_csv(study.RUNS)
    assert (lines.groupby("run").size() == 20).all()  # 400 steps
    for name, own in lines.groupby("run"):
        settings = {key: own[key].iloc[0] for key in vars(planned[name])}
        assert settings == vars(planned[name])
        layers = planned[name].depth + (planned[name].activations == "hidden_states")  # with the embeddings
        assert own.filter(like="entropy/").notna().to_numpy().sum() == 20 * layers


def test_a_run_returns_the_columns_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    study = program("results/deep_bert/study.py")
    original = study.deep_bert.Arguments
    monkeypatch.setattr(
        study.deep_bert, "Arguments", lambda **kwargs: original(**(kwargs | {"max_steps": 40, "output_dir": "run"}))
    )
    lines = study.execute(study.Run(seed=0, depth=2, beta=0.5))
    file = pd.read_csv(study.RUNS, nrows=1)
    entropies = {f"entropy/layer_{layer:02d}" for layer in range(3)}
    assert set(lines) | {"run"} == {name for name in file if not name.startswith("entropy/")} | entropies
    assert lines["step"].to_list() == [20, 40]
    assert lines["test_accuracy"].isna().all()
    assert np.isfinite(lines[sorted(entropies)].to_numpy()).all()
