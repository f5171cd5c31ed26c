"""The numbers that README and the pages of the grids take from `results/` are those of the committed files."""

import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from pages import table
from programs import ROOT, program
from scipy.stats import binomtest

from lbe_hf import LBETrainingArguments

RESULTS = ROOT / "results"
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = " ".join(TEXT.split())  # sentences without their line breaks
BASELINE, FEED_FORWARD, HIDDEN_STATES = "baseline", "LBE on feed_forward", "LBE on hidden_states"
METHODS = {  # of README's table: whether LBE, with how many steps of warm-up
    "without LBE": (0.0, 0),
    "LBE on the hidden states": (0.5, 0),
    "warm-up over the first 40 steps": (0.0, 40),
    "warm-up and LBE": (0.5, 40),
}


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    """Deep BERTs by step, those of the main comparison and of the border."""
    lines = pd.read_csv(RESULTS / "deep_bert" / "runs.csv")
    lines = lines.copy().assign(lowest=lines.filter(like="entropy/").min(axis="columns"))
    main = (lines["data"] == "sentences") & (lines["model_type"] == "bert") & (lines["activations"] == "hidden_states")
    return lines[main]


def ends(steps: pd.DataFrame, **settings: object) -> pd.DataFrame:
    """What became of the runs with these settings, by seed."""
    for name, value in ({"decay": "none", "warmup_steps": 0, "depth": 48, "learning_rate": 1e-3} | settings).items():
        steps = steps[steps[name] == value]
    by_seed, last = steps.groupby("seed"), steps[steps["step"] > 300].groupby("seed")
    return pd.DataFrame(
        {
            "trained": last["accuracy"].mean() > 0.95,
            "for_a_while": by_seed["accuracy"].max() > 0.95,
            "collapsed": last["lowest"].median() < 1e-3,
            "steps": steps[steps["accuracy"] > 0.95].groupby("seed")["step"].min(),
        }
    )


def setting(beta: float, alpha: float = 0.7) -> dict[str, object]:
    return {"beta": beta, "alpha": alpha} if beta else {"beta": 0.0}


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


def mcnemar(left: pd.DataFrame, right: pd.DataFrame) -> float:
    """The two tails of a fair coin that is thrown for each seed at which the two differ."""
    differences = left["trained"].astype(int) - right["trained"].astype(int)
    heads, throws = int((differences > 0).sum()), int((differences != 0).sum())
    tosses = np.array([sum(sides) for sides in product((0, 1), repeat=throws)])
    return min(1.0, 2 * float(np.mean(tosses >= max(heads, throws - heads))))


@pytest.fixture(scope="module")
def minilm() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "minilm" / "results.csv")


def at_chosen_rate(runs: pd.DataFrame, task: str, method: str) -> pd.DataFrame:
    """The runs, by seed, at the learning rate with the best mean validation score."""
    own = runs[(runs["task"] == task) & (runs["method"] == method)]
    rate = own.groupby("learning_rate")["validation"].mean().idxmax()
    return own[own["learning_rate"] == rate].set_index("seed")


def against_baseline(runs: pd.DataFrame, task: str, method: str) -> str:
    """The cell of README: mean test score, difference by seed, its range and p-value from three seeds on."""
    own, baseline = (at_chosen_rate(runs, task, name)["test"] for name in (method, BASELINE))
    differences = (own - baseline).dropna().to_numpy()
    cell = f"{own.mean():.4f}, by seed {differences.mean():+.4f}"
    if len(differences) < 3:
        return cell
    signs = np.array(list(product((1, -1), repeat=len(differences))))
    as_extreme = np.abs((signs * differences).mean(axis=1)) >= abs(differences.mean()) - 1e-12
    return f"{cell} ({differences.min():+.4f} to {differences.max():+.4f}), p {as_extreme.mean():.2f}"


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


def test_penalty_on_a_healthy_encoder(minilm: pd.DataFrame) -> None:
    both = pd.concat([minilm, pd.read_csv(RESULTS / "cola" / "results.csv")])
    healthy = (both["beta"] == 0.05) & (both["learning_rate"] <= 2e-4)  # at 3e-4 some runs collapse
    penalty = both[healthy & (both["method"] == HIDDEN_STATES)]["penalty"]
    lowest, highest = (f"{value:.0e}".replace("e-0", "e-") for value in (penalty.min(), penalty.max()))
    claim = f"(MiniLM, learning rates up to 2e-4) the penalty was {lowest} to {highest} of the loss at beta 0.05"
    assert claim in PAGE
    assert "five times the default" in PAGE
    assert LBETrainingArguments(output_dir="unused").lbe_beta * 5 == pytest.approx(0.05)
    means = [at_chosen_rate(minilm, task, HIDDEN_STATES)["penalty"].mean() for task in ("cola", "rte")]
    page = (RESULTS / "minilm" / "README.md").read_text(encoding="utf-8")
    assert "is {} to {} of the loss".format(*(f"{mean:.0e}".replace("e-0", "e-") for mean in means)) in page


def test_cola_at_high_learning_rates() -> None:
    runs = pd.read_csv(RESULTS / "cola" / "results.csv")
    rows = table((RESULTS / "cola" / "README.md").read_text(encoding="utf-8"), "learning rate")
    assert [row[0] for row in rows] == ["5e-5", "1e-4", "2e-4", "3e-4"]
    for rate, *cells in rows:
        scores = [
            runs[(runs["learning_rate"] == float(rate)) & (runs["beta"] == beta)]["test"] for beta in (0, 0.05, 0.5)
        ]
        assert cells == [f"{own.mean():.3f} ({own.min():.3f} to {own.max():.3f})" for own in scores]
    without, weak, strong = rows[-1][1:]
    assert f"falls to {without} without LBE, {weak} with beta 0.05 and {strong} with beta 0.5" in PAGE
    means = sorted(cell.split()[0] for cell in rows[0][1:])
    assert f"where 5e-5 gives {means[0]} to {means[-1]}" in PAGE
