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
    exact_p_value,
    grid,
    short,
)

METHODS = (HIDDEN_STATES, FEED_FORWARD)
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


def test_each_task_has_five_seeds(runs: pd.DataFrame) -> None:
    assert (runs.groupby(["task", "method", "learning_rate"])["seed"].nunique() == 5).all()
    report = (RESULTS / "minilm" / "report.md").read_text(encoding="utf-8")
    assert "All 135 runs are done." in report
    (tests,) = re.findall(r"p \(Holm\) is corrected for the (\d+) comparisons", report)
    corrected = [float(p) for p in re.findall(r"\| ([\d.]+) \|\n", report.split("## LBE against the baseline")[1])]
    assert len(corrected) == int(tests)
    assert f"The report has {tests} of them; after Holm's correction none is below {min(corrected):.2f}." in PAGE


def test_rte_at_the_same_learning_rates(runs: pd.DataFrame) -> None:
    claims, p_values = [], []
    for method in METHODS:
        own, baseline = (
            runs[(runs["task"] == "rte") & (runs["method"] == name)].set_index(["seed", "learning_rate"])["test"]
            for name in (method, BASELINE)
        )
        by_seed = (own - baseline).groupby("seed").mean()
        half = t.ppf(0.975, len(by_seed) - 1) * by_seed.std(ddof=1) / len(by_seed) ** 0.5
        claims.append([f"{value:+.4f}" for value in (by_seed.mean(), by_seed.mean() - half, by_seed.mean() + half)])
        p_values.append(exact_p_value(by_seed))
    (mean, low, high), (other_mean, other_low, other_high) = claims
    assert (
        f"difference on RTE is {mean} on the hidden states (Student's interval {low} to {high}) and {other_mean} on "
        f"the feed-forward outputs ({other_low} to {other_high})."
    ) in PAGE
    assert "The exact p-values are {:.2f} and {:.2f},".format(*p_values) in PAGE
    report = (RESULTS / "minilm" / "report.md").read_text(encoding="utf-8")
    holm = [re.findall(rf"\| rte .*{name} \|.*same learning rates.*\| ([\d.]+) \|\n", report)[0] for name in METHODS]
    assert "after Holm's correction {:.2f} and {:.2f},".format(*map(float, holm)) in PAGE
