"""The numbers that README takes from `results/` are those of the committed files."""

import re
from itertools import product

import pandas as pd
import pytest
from pages import table
from programs import ROOT, program
from scipy.stats import binomtest
from studies import (
    BASELINE,
    FEED_FORWARD,
    HIDDEN_STATES,
    against_baseline,
    at_chosen_rate,
    deep_bert,
    ends,
    grid,
    mcnemar,
    over_seeds,
    penalties_of_healthy_encoders,
    setting,
    short,
)

from lbe_hf import LBETrainingArguments

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = " ".join(TEXT.split())  # sentences without their line breaks
METHODS = {  # of README's table: whether LBE, with how many steps of warm-up
    "without LBE": (0.0, 0),
    "LBE on the hidden states": (0.5, 0),
    "warm-up over the first 40 steps": (0.0, 40),
    "warm-up and LBE": (0.5, 40),
}


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    return deep_bert()


def test_deep_bert_by_method(steps: pd.DataFrame) -> None:
    rows = table(TEXT, "of 20 seeds")
    assert [row[0] for row in rows] == list(METHODS)
    for name, *cells in rows:
        beta, warmup_steps = METHODS[name]
        own = ends(steps, warmup_steps=warmup_steps, **setting(beta))
        interval = binomtest(int(own["trained"].sum()), 20).proportion_ci(method="exact")
        share = f"{own['trained'].sum()} ({interval.low:.0%} to {interval.high:.0%})"
        assert len(own) == 20
        assert cells == [str(own["collapsed"].sum()), str(own["for_a_while"].sum()), share]


def test_deep_bert_by_depth_and_learning_rate(steps: pd.DataFrame) -> None:
    first = steps[steps["seed"] < 5]
    rows = table(TEXT, "layers | 3e-4")
    assert [row[0] for row in rows] == ["12", "24", "48", "96"]
    for depth, *cells in rows:
        for cell, rate in zip(cells, (3e-4, 1e-3, 2e-3), strict=True):
            trained = [
                ends(first, depth=int(depth), learning_rate=rate, **setting(beta))["trained"].sum()
                for beta in (0.0, 0.5)
            ]
            assert cell == f"{trained[0]} / {trained[1]}"


def test_the_open_question(steps: pd.DataFrame) -> None:
    lower, higher = ends(steps, learning_rate=3e-4, **setting(0.0)), ends(steps, **setting(0.0))
    warmup = ends(steps, warmup_steps=40, **setting(0.0))
    stronger = ends(steps[steps["seed"] >= 5], **setting(2.0, 0.5))
    shares = [f"{own['trained'].sum()} of {len(own)}" for own in (higher, warmup, stronger, lower)]
    medians = [f"{own['steps'].median():.0f}" for own in (lower, stronger)]
    claim = (
        r"1e-3 needs LBE: (.*?) runs train without it \((.*?) with a warm-up\), (.*?) with alpha 0.5 and beta 2. "
        r"At 3e-4 it trains without LBE, (.*?), in a median of (.*?) steps to an accuracy of 0.95 against (\d+)"
    )
    found = re.search(claim, PAGE)
    assert found is not None
    assert list(found.groups()) == shares + medians
    opening = TEXT[: TEXT.index("```bash")]
    assert "open question" in opening


def test_p_values_of_deep_bert(steps: pd.DataFrame) -> None:
    none, lbe, warmup = (ends(steps, **setting(beta), warmup_steps=w) for beta, w in ((0.0, 0), (0.5, 0), (0.0, 40)))
    linear = [ends(steps, decay="linear", **setting(beta)) for beta in (0.5, 0.0)]
    stronger = ends(steps[steps["seed"] >= 5], **setting(2.0, 0.5))
    decayed = [own["trained"].sum() for own in linear]
    assert f"{decayed[0]} of 10 seeds end above 0.95 with LBE, {decayed[1]} of 10 without" in PAGE
    assert f"{stronger['trained'].sum()} of 15 others end above 0.95" in PAGE
    assert none["trained"].sum() == 0
    assert f"and {warmup.loc[5:, 'trained'].sum()} do with the only warm-up" in PAGE
    found = re.findall(r"\bp = ([\d.e-]+\d)", PAGE[PAGE.index("That no layer collapses") :])
    pairs = [(lbe, none), (lbe, warmup), tuple(linear)]
    after = [(stronger, none.loc[5:]), (stronger, warmup.loc[5:])]
    gained = sum(
        ends(steps[steps["seed"] < 5], depth=depth, learning_rate=rate, **setting(0.5))["trained"].astype(int)
        - ends(steps[steps["seed"] < 5], depth=depth, learning_rate=rate, **setting(0.0))["trained"].astype(int)
        for depth, rate in product((12, 24, 48, 96), (3e-4, 1e-3, 2e-3))
    )
    assert (gained > 0).all()  # so that the sign test by seed has the p-value 2 / 2^5
    expected = [*(mcnemar(*pair) for pair in pairs), 2 / 2**5, *(mcnemar(*pair) for pair in after)]
    assert found == [f"{p:.2g}" for p in expected]


def test_corrected_p_values_of_deep_bert() -> None:
    report = program("results/deep_bert/report.py")
    tests = report.all_tests(report.load()[1])
    holm = tests[tests["outcome"] == "trained"].set_index("comparison")["holm"]
    names = ["LBE against none", *(f"{report.CHOSEN_NAME}, against {other}" for other in ("none", "warm-up"))]
    found = re.findall(r"(?:Holm's correction|corrected) ([\d.e-]+\d)", PAGE)
    assert found == [f"{holm[name]:.2g}" for name in names]
    assert f"one of {len(tests)} tests" in PAGE


@pytest.fixture(scope="module")
def minilm() -> pd.DataFrame:
    return grid("minilm")


def test_minilm(minilm: pd.DataFrame) -> None:
    *tasks, penalties = table(TEXT, "task, metric")
    assert [row[0].split(",")[0] for row in tasks] == ["RTE", "CoLA", "MRPC"]
    for (name, baseline, *cells), task in zip(tasks, ("rte", "cola", "mrpc"), strict=True):
        assert baseline == f"{at_chosen_rate(minilm, task, BASELINE)['test'].mean():.4f}", name
        assert cells == [against_baseline(minilm, task, method) for method in (FEED_FORWARD, HIDDEN_STATES)]
    for cell, method in zip(penalties[2:], (FEED_FORWARD, HIDDEN_STATES), strict=True):
        means = [at_chosen_rate(minilm, task, method)["penalty"].mean() for task in ("rte", "cola", "mrpc")]
        assert cell == f"{min(means):.4f} to {max(means):.4f}"
    assert f"{len(minilm)} runs" in PAGE


def test_penalty_on_a_healthy_encoder() -> None:
    penalty = penalties_of_healthy_encoders()
    lowest, highest = short(penalty.min()), short(penalty.max())
    claim = f"(MiniLM, learning rates up to 2e-4) the penalty was {lowest} to {highest} of the loss at beta 0.05"
    assert claim in PAGE
    assert "five times the default" in PAGE
    assert LBETrainingArguments(output_dir="unused").lbe_beta * 5 == pytest.approx(0.05)


def test_cola_at_high_learning_rates() -> None:
    runs = grid("cola")
    without, weak, strong = (over_seeds(runs, 3e-4, beta) for beta in (0, 0.05, 0.5))
    assert f"falls to {without} without LBE, {weak} with beta 0.05 and {strong} with beta 0.5" in PAGE
    means = sorted(over_seeds(runs, 5e-5, beta).split()[0] for beta in (0, 0.05, 0.5))
    assert f"where 5e-5 gives {means[0]} to {means[-1]}" in PAGE
