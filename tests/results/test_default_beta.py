"""The study of the default beta runs on the official files, and counts the runs of its protocol."""

import os
from collections import Counter
from typing import Any

import pandas as pd
import pytest
from programs import ROOT, program
from studies import deep_bert, ends, setting, variants_that_train

from lbe_hf import LBETrainingArguments


def test_the_runs_of_the_protocol() -> None:
    study = program("results/default_beta/study.py")
    runs = {run.name: run for run in study.plan(pd.DataFrame(columns=["run"]))}
    assert Counter(run.task for run in runs.values()) == {"cola": 2 * 8, "mrpc": 2 * 8, "rescue": 2 * 15}


def test_fine_tuned_is_with_the_only_beta_that_rescues() -> None:
    study, report = program("results/default_beta/study.py"), program("results/default_beta/report.py")
    runs = pd.concat([pd.read_csv(study.RUNS), report.at_beta_2(pd.read_csv(report.TUNED_RIVALS))])
    trained = {beta: report.rescued(runs, beta) for beta in study.BETAS}
    assert {len(own) for own in trained.values()} == {15}
    assert [beta for beta, own in trained.items() if own.sum() >= 12] == [study.RESCUING]


def test_the_page_has_the_table_and_its_summary_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "results" / "default_beta" / "README.md").read_text(encoding="utf-8")
    report = program("results/default_beta/report.py")
    report.main()
    first, *printed = capsys.readouterr().out.splitlines()
    assert first == "77 runs, fine-tuning with 8 seeds"
    assert set(printed) <= set(page.splitlines())
    summary = " ".join(page[: page.index("## What was done")].split())
    scores = (
        pd.read_csv(ROOT / "results" / "default_beta" / "runs.csv")
        .set_index(["task", "beta", "seed"])
        .sort_index()["score"]
    )
    for task, ending in (("cola", "of {bound:.2f}, and the rule"), ("mrpc", "with a bound of {bound:.2f}")):
        differences = 100 * (scores[task, 2.0] - scores[task, 0.0])
        bound = differences.mean() - 1.894579 * differences.std() / 8**0.5  # 95% of Student's t, 7 degrees of freedom
        assert f"{differences.mean():+.2f} points" in summary
        assert ending.format(bound=bound) in summary
        assert (bound > -1) == (task == "mrpc")
    differences = 100 * (scores["cola", 2.0] - scores["cola", 0.0])
    assert (differences > 0).sum() == 5
    assert f"go up to {differences.abs().max():.2f} points" in summary
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    trained = variants_that_train()["LBE"]
    weak = {beta: (scores["rescue", beta].round(4) > 0.95).sum() for beta in (0.5, 0.05)}
    counts = f"({trained.split()[0]}; beta 0.5 trains {weak[0.5]}, beta 0.05 trains {weak[0.05]}), and on CoLA"
    assert f"only 2 trains the 12 of 15 runs that the rule asks for {counts}" in evidence
    none = variants_that_train()["none"].split()[0]
    assert f"beta 0.5 trains {weak[0.5]} of 15 runs and beta 0.05 trains {weak[0.05]}" in summary
    assert f"training without the penalty {none}." in summary
    for beta in (0.5, 0.05):
        assert ends(deep_bert(), **setting(beta, 0.5))["trained"].agg(["sum", "size"]).tolist() == [1, 5]
    assert "each of the two trains 1 of 5" in summary
    bound = differences.mean() - 1.894579 * differences.std() / 8**0.5
    assert f"(mean {differences.mean():+.2f} points, bound {bound:.2f})" in evidence
    assert f"Only beta 2 rescues it: {trained} runs train" in summary


def test_the_default_stays_because_no_beta_does_both() -> None:
    report = program("results/default_beta/report.py")
    runs = pd.concat([pd.read_csv(report.HERE / "runs.csv"), report.at_beta_2(pd.read_csv(report.TUNED_RIVALS))])
    assert set(report.table(runs)["does both"]) == {"no"}
    assert LBETrainingArguments().lbe_beta == 0.01


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


def test_the_report_reads_beta_2_from_the_judgement_of_lbe() -> None:
    report = program("results/default_beta/report.py")
    seeds = range(41, 49)
    none, lbe = [0.50 + 0.01 * (seed % 3) for seed in seeds], [0.51] * 8
    runs = [
        {"task": task, "seed": seed, "beta": beta, "score": score}
        for task in ("cola", "mrpc")
        for beta, scores in ((0.0, none), (2.0, lbe))
        for seed, score in zip(seeds, scores, strict=True)
    ]
    setting = {"initialization": "default", "learning_rate": 1e-3, "warmup_steps": 0, "max_grad_norm": 1, "alpha": 0.5}
    lines = [
        {**setting, "run": f"{beta}-{seed}", "beta": beta, "seed": seed, "step": step, "accuracy": accuracy}
        for beta, accuracy in ((2.0, 1.0), (0.5, 0.5))
        for seed in (0, 100, 101)
        for step in range(20, 401, 20)
    ]
    row = report.table(pd.concat([pd.DataFrame(runs), report.at_beta_2(pd.DataFrame(lines))])).loc[2.0]
    assert row["trained"] == "2 of 2 (16% to 100%)"
    differences = [1.0 - seed % 3 for seed in seeds]  # in points: 41 % 3 is 2
    mean = sum(differences) / 8
    error = (sum((each - mean) ** 2 for each in differences) / 7 / 8) ** 0.5
    assert row["cola: difference (bound)"] == f"{mean:+.2f} ({mean - 1.894579 * error:+.2f})"  # t, 95%, 7


@pytest.mark.parametrize(
    ("trained", "mrpc", "expected"), [(12, 0.50, True), (11, 0.50, False), (12, 0.489, False)], ids=str
)
def test_the_rule_of_the_protocol(trained: int, mrpc: float, expected: bool) -> None:
    """At least 12 of 15 runs train, and no task loses a point."""
    scores = {"rescue": [1.0] * trained + [0.9] * (15 - trained), "cola": [0.52] * 8, "mrpc": [mrpc] * 8}
    runs = pd.DataFrame(
        [
            {"task": task, "seed": seed, "beta": beta, "score": score}
            for task, own in scores.items()
            for beta, values in ((0.0, [0.50] * 8 if task != "rescue" else []), (0.5, own))
            for seed, score in enumerate(values)
        ]
    )
    report = program("results/default_beta/report.py")
    assert report.does_both(runs, 0.5) is expected
    assert report.table(runs).loc[0.5, "does both"] == ("yes" if expected else "no")
