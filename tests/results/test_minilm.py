"""The page of the MiniLM grid has what its runs have."""

import re

import pandas as pd
import pytest
from pages import table
from scipy.stats import t
from studies import (
    BASELINE,
    FEED_FORWARD,
    HIDDEN_STATES,
    RESULTS,
    against_baseline,
    at_chosen_rate,
    grid,
    short,
)

TASKS = ("rte", "cola", "mrpc")
TEXT = (RESULTS / "minilm" / "README.md").read_text(encoding="utf-8")
PAGE = " ".join(TEXT.split())


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return grid("minilm")


def test_scores_by_task(runs: pd.DataFrame) -> None:
    *tasks, penalties = table(TEXT, "task, metric")
    assert [row[0].split(",")[0].lower() for row in tasks] == list(TASKS)
    for (_, baseline, *cells), task in zip(tasks, TASKS, strict=True):
        assert baseline == f"{at_chosen_rate(runs, task, BASELINE)['test'].mean():.4f}"
        assert cells == [against_baseline(runs, task, method) for method in (FEED_FORWARD, HIDDEN_STATES)]
    for cell, method in zip(penalties[2:], (FEED_FORWARD, HIDDEN_STATES), strict=True):
        means = [at_chosen_rate(runs, task, method)["penalty"].mean() for task in TASKS]
        assert cell == f"{min(means):.4f} to {max(means):.4f}"
    assert f"{len(runs)} runs" in PAGE
    chosen = [at_chosen_rate(runs, row["task"], row["method"]) for _, row in runs.iterrows()]
    assert {rate for own in chosen for rate in own["learning_rate"]} == {5e-5}  # as the page has it


def test_the_penalty_is_as_small_as_the_page_has_it(runs: pd.DataFrame) -> None:
    means = [at_chosen_rate(runs, task, HIDDEN_STATES)["penalty"].mean() for task in TASKS]
    assert f"is {short(min(means))} to {short(max(means))} of the loss" in PAGE


def test_each_task_has_three_seeds(runs: pd.DataFrame) -> None:
    assert (runs.groupby(["task", "method", "learning_rate"])["seed"].nunique() == 3).all()
    report = (RESULTS / "minilm" / "report.md").read_text(encoding="utf-8")
    assert "All 81 runs are done." in report
    (tests,) = re.findall(r"p \(Holm\) is corrected for the (\d+) comparisons", report)
    assert report.count(" | 1.0000 |\n") == int(tests)
    assert f"The report has {tests} of them; after Holm's correction all are 1.00." in PAGE


def test_rte_at_the_same_learning_rates(runs: pd.DataFrame) -> None:
    own, baseline = (
        runs[(runs["task"] == "rte") & (runs["method"] == method)].set_index(["seed", "learning_rate"])["test"]
        for method in (HIDDEN_STATES, BASELINE)
    )
    by_seed = (own - baseline).groupby("seed").mean()
    half = t.ppf(0.975, len(by_seed) - 1) * by_seed.std(ddof=1) / len(by_seed) ** 0.5
    claim = re.search(r"RTE on the hidden states is (\S+) \(Student's interval (\S+) to (\S+)\)", PAGE)
    assert claim is not None
    assert list(claim.groups()) == [
        f"{value:+.4f}" for value in (by_seed.mean(), by_seed.mean() - half, by_seed.mean() + half)
    ]
