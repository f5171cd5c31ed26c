"""The study of a second task counts the runs of its protocol, and trains a run of each kind."""

from collections import Counter
from pydoc_data.topics import topics
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from programs import program


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
