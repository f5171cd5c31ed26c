"""The study of the default beta runs on the official files, and counts the runs of its protocol."""

import os
from collections import Counter
from typing import Any

import pandas as pd
import pytest
from programs import program


def test_the_runs_of_the_protocol() -> None:
    study = program("results/default_beta/study.py")
    runs = {run.name: run for run in study.plan(pd.DataFrame(columns=["run"]))}
    assert Counter(run.task for run in runs.values()) == {"cola": 4 * 8, "mrpc": 4 * 8, "rescue": 3 * 15}


@pytest.mark.skipif("GLUE_DATA_DIR" not in os.environ, reason="GLUE_DATA_DIR is not set: no official files")
def test_a_run_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    study = program("results/default_beta/study.py")
    parse, arguments = study.arguments.parse, study.deep_bert.Arguments
    few = ["--max_steps", "2", "--max_train_samples", "100", "--max_eval_samples", "32"]
    monkeypatch.setattr(study.arguments, "parse", lambda argv: parse([*argv, *few]))

    def short(**settings: Any) -> Any:
        return arguments(**{**settings, "max_steps": 40, "depth": 2})

    monkeypatch.setattr(study.deep_bert, "Arguments", short)
    lines = pd.concat([study.execute(study.Run(task, 41, 0.5)) for task in ("mrpc", "rescue")])
    assert lines[["task", "seed", "beta"]].to_numpy().tolist() == [["mrpc", 41, 0.5], ["rescue", 41, 0.5]]
    assert lines["score"].between(0.3, 1).all()
