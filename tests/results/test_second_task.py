"""The study of a second task counts the runs of its protocol, and trains a run of each kind."""

from collections import Counter
from pydoc_data.topics import topics
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from pages import table
from programs import ROOT, program

FOLDER = ROOT / "results" / "second_task"


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    """By task and seed, without LBE (0.0) and with it (2.0)."""
    return pd.read_csv(FOLDER / "runs.csv").pivot(index=["task", "seed"], columns="beta", values="score")


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return program("results/second_task/study.py")


def test_the_runs_of_the_protocol(study: ModuleType) -> None:
    runs = {run.name: run for run in study.plan(pd.DataFrame(columns=["run"]))}
    assert Counter((run.task, run.beta) for run in runs.values()) == {
        ("digits", 0.0): 15,
        ("digits", 2.0): 15,
        ("characters", 0.0): 5,
        ("characters", 2.0): 5,
    }


def test_a_run_of_each_kind(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = study.deep_bert.Arguments

    def short(**settings: Any) -> Any:
        return arguments(**{**settings, "max_steps": 20, "depth": 2})

    monkeypatch.setattr(study.deep_bert, "Arguments", short)
    monkeypatch.setattr(study, "LAYERS", 2)
    lines = pd.concat([study.execute(study.Run(task, 100, 2.0)) for task in study.SEEDS])
    accuracy, perplexity = lines["score"]
    assert 0 < accuracy < 1
    assert 5 < perplexity < 60  # of a uniform distribution over the characters: 103 with Python 3.11


def test_the_text_is_pythons_documentation_and_its_end_is_held_out(study: ModuleType) -> None:
    training, held_out, vocabulary = study.text()
    text = "\n".join(own for name, own in topics.items() if name != "compound")
    characters = sorted(set(text))
    assert vocabulary == len(characters)

    def spelled(sequences: Any) -> str:
        return "".join(characters[index] for row in sequences.datasets["input_ids"].tolist() for index in row)

    assert text.startswith(spelled(training) + spelled(held_out))
    lines = {line.strip() for line in spelled(training).splitlines()}
    seen = sum(len(line) for line in spelled(held_out).splitlines() if len(line) > 20 and line.strip() in lines)
    assert seen / len(spelled(held_out)) < 0.03  # such as "The following example", and 0.08 with "compound"
    assert 0.09 < len(held_out) / (len(training) + len(held_out)) < 0.11


def test_the_decoder_normalizes_after_each_sublayer(study: ModuleType) -> None:
    block = study.decoder(seed=0, vocabulary=10).transformer.h[0]
    assert [type(module).__name__ for module in block.children()] == ["Attention", "LayerNorm", "MLP", "LayerNorm"]


def test_the_report_has_the_paired_difference_with_students_interval() -> None:
    report = program("results/second_task/report.py")
    scores = {0.0: [5.0, 6.0, 7.0], 2.0: [4.0, 5.0, 5.0]}
    runs = pd.DataFrame(
        [
            {"task": "characters", "beta": beta, "seed": seed, "score": score}
            for beta, own in scores.items()
            for seed, score in enumerate(own)
        ]
    )
    row = report.table(runs).iloc[0]
    half = 4.302653 * (1 / 3) ** 0.5 / 3**0.5  # 97.5% of Student's t with 2 degrees of freedom; variance 1/3
    assert row["difference"] == f"-1.333 ({-4 / 3 - half:+.3f} to {-4 / 3 + half:+.3f})"
    assert row["without LBE"] == "6.000 (5.000 to 7.000)"
    runs.loc[runs.index[-1], "score"] = float("inf")
    assert report.table(runs).iloc[0]["difference"] == "none: in 1 of 3 pairs a run diverged"


def test_no_run_is_missing(study: ModuleType, scores: pd.DataFrame) -> None:
    assert {name: list(own.droplevel("task").index) for name, own in scores.groupby("task")} == {
        name: list(seeds) for name, seeds in study.SEEDS.items()
    }
    assert scores.notna().all(axis=None)


def test_the_page_has_the_table_and_its_summary_the_numbers(
    scores: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    program("results/second_task/report.py").main()
    _, *printed = capsys.readouterr().out.splitlines()  # the first line counts the runs
    assert set(printed) <= set(text.splitlines())
    summary = " ".join(text[: text.index("## What was done")].split())
    claims = {
        "digits": "a mean test accuracy of {:.3f} without LBE and {:.3f} with it",
        "characters": "a mean perplexity of {:.3f} without LBE and {:.3f} with it",
    }
    for row in table(text, "task | seeds"):
        task = row[0].partition(":")[0]
        own = scores.loc[task]
        assert claims[task].format(own[0.0].mean(), own[2.0].mean()) in summary
        assert f"(difference {row[-1].replace(' (', ', interval ').rstrip(')')})" in summary
    digits, characters = scores.loc["digits"], scores.loc["characters"]
    failed = digits < 0.2  # chance is 0.10
    assert f"{failed[0.0].sum()} of 15 runs without LBE end below 0.2, and {failed[2.0].sum()} with it" in summary
    both = (digits[2.0] - digits[0.0])[~failed.any(axis="columns")]
    spread = f"{both.min():+.3f} to {both.max():+.3f}"
    assert f"In the {len(both)} pairs in which both learn the difference is {spread}" in summary
    learned = characters[characters[0.0] < 10]
    (lost,) = characters.loc[characters[0.0] > 10, 0.0]
    assert f"one of the 5 runs without LBE ends at {lost:.1f}" in summary
    assert f"the other {len(learned)} end between {learned[0.0].min():.2f} and {learned[0.0].max():.2f}" in summary
    with_lbe = characters[2.0]
    assert f"all with LBE between {with_lbe.min():.2f} and {with_lbe.max():.2f}" in summary
    lower = learned[0.0] - learned[2.0]
    assert (characters[2.0] < characters[0.0]).all()
    assert lower.max() < 0.06
    assert "In each of the five pairs LBE is lower (post hoc), four times by less than 0.06" in summary
