"""The numbers on the pages of `docs/` are those of the committed results; those of README are its own affair."""

import re

import pandas as pd
import pytest
from pages import table
from programs import ROOT, program
from studies import (
    BASELINE,
    FEED_FORWARD,
    deep_bert,
    ends,
    grid,
    judged_rivals,
    mcnemar,
    penalties_of_healthy_encoders,
    setting,
    settings_that_train,
    short,
    variants_that_train,
)

DOCS = ROOT / "docs"
EVIDENCE = (DOCS / "evidence.md").read_text(encoding="utf-8")


def answers() -> dict[str, str]:
    """The last cell of the table, by the question before it."""
    return {question: answer for _, question, answer in table(EVIDENCE, "study | question")}


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    return deep_bert()


def trained(runs: pd.DataFrame) -> str:
    return f"{runs['trained'].sum()} of {len(runs)}"


def test_a_deep_transformer_at_a_high_rate(steps: pd.DataFrame) -> None:
    fresh = steps[steps["seed"] >= 5]
    none, warmup = ends(fresh, **setting(0.0)), ends(fresh, warmup_steps=40, **setting(0.0))
    lbe = ends(fresh, **setting(2.0, 0.5))
    assert answers()["Does a BERT of 48 layers, trained from scratch at 1e-3, learn?"] == (
        f"Without LBE {trained(none)} runs, with a warm-up {trained(warmup)}; "
        f"LBE with alpha 0.5 and beta 2: {trained(lbe)}"
    )


def test_a_deep_transformer_at_a_lower_rate(steps: pd.DataFrame) -> None:
    lower = ends(steps, learning_rate=3e-4, **setting(0.0))
    lbe = ends(steps[steps["seed"] >= 5], **setting(2.0, 0.5))
    assert answers()["At 3e-4?"] == (
        f"Without LBE {trained(lower)} runs; median of {lower['steps'].median():.0f} steps to an accuracy of 0.95, "
        f"against {lbe['steps'].median():.0f} with LBE at 1e-3"
    )


def test_the_first_setting(steps: pd.DataFrame) -> None:
    lbe, none = ends(steps, **setting(0.5)), ends(steps, **setting(0.0))
    report = program("results/deep_bert/report.py")
    tests = report.all_tests(report.load()[1])
    (holm,) = tests[(tests["comparison"] == "LBE against none") & (tests["outcome"] == "trained")]["holm"]
    assert answers()["With alpha 0.7 and beta 0.5, the first setting?"] == (
        f"{trained(lbe)} runs, {trained(none)} without: p = {mcnemar(lbe, none):.2g}, "
        f"with Holm's correction {holm:.2g}, so not shown"
    )


def test_tuned_rivals() -> None:
    trained, median = judged_rivals()
    assert answers()["Both tuned, on fifteen fresh seeds: how many runs train?"] == (
        f"{trained['LBE']} with LBE, {trained['none']} without it: no difference shown"
    )
    page = (ROOT / "results" / "tuned_rivals" / "README.md").read_text(encoding="utf-8")
    (p,) = (log_rank for rival, _, log_rank in table(page, "LBE against | McNemar") if rival == "none")
    assert answers()["How fast?"] == (
        f"Median of {median['LBE']} steps to an accuracy of 0.95 with LBE, {median['none']} without it, "
        f"one line of the log: p = {p.replace(' (', ', with Holm' + chr(39) + 's correction ').rstrip(')')}"
    )
    others = {"Pre-LayerNorm": "prelayernorm", "GPT-2's initialization": "gpt2", "DeepNorm's": "deepnorm"}
    assert answers()["Is another initialization or normalization better?"] == "; ".join(
        f"{name}: {trained[rival]}, {median[rival]} steps" for name, rival in others.items()
    )
    claim = f"the network needs {median['none']} steps instead of {median['LBE']}; at the same rate, 5e-4"
    assert claim in " ".join(EVIDENCE.split())
    (pairs,) = re.findall(r"in (\d+ of \d+) pairs, and fewer in (\d+);", " ".join(page.split()))
    assert answers()["At the same rate, of 5e-4 or less?"] == (
        f"LBE with alpha 0.5 and beta 2 is slower in {pairs[0]} pairs, faster in {pairs[1]} (post hoc)"
    )


def test_a_second_task() -> None:
    runs = pd.read_csv(ROOT / "results" / "second_task" / "runs.csv")
    page = (ROOT / "results" / "second_task" / "README.md").read_text(encoding="utf-8")
    rows = {row[0].partition(":")[0]: row[-1] for row in table(page, "task | seeds")}
    means = {name: f"{score:.3f}" for name, score in runs.groupby(["task", "beta"])["score"].mean().items()}
    for question, task, verdict in (
        ("Digits as sequences, 48 layers at 1e-3: what accuracy?", "digits", ""),
        ("A language model of characters, 24 layers at 1e-3: what perplexity?", "characters", "No difference shown: "),
    ):
        difference, interval = rows[task].rstrip(")").split(" (")
        assert answers()[question] == (
            f"{verdict}{means[task, 0.0]} without LBE, {means[task, 2.0]} with it (difference {difference}, "
            f"interval {interval})"
        )
        low, high = map(float, interval.split(" to "))
        assert (low < 0 < high) == bool(verdict)


def test_mechanism() -> None:
    trained = variants_that_train()
    assert answers()["Which part of the penalty is needed, at this setting?"] == (
        f"LBE trains {trained['LBE']} runs; without the pull downward {trained['one-sided']}, on the paper's modules "
        f"{trained['feed-forward and pooler']}, with a floor on the variance {trained['floor']}"
    )
    assert answers()["Which part is not shown to matter?"] == (
        f"With fixed targets {trained['targets fixed']}, with the penalty for 100 steps only "
        f"{trained['first 100 steps']}, in the additive form {trained['additive']}"
    )


def test_robustness() -> None:
    low, every = (1e-4, 2e-4, 3e-4), (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)
    questions = {"train the 48 layers?": every, "learning rate of 1e-3?": (1e-3,), "At 3e-4 and below?": low}
    for ending, rates in questions.items():
        (answer,) = (answer for question, answer in answers().items() if question.endswith(ending))
        runs = " runs" if rates == every else ""
        with_lbe, without = (settings_that_train(beta, *rates) for beta in (2.0, 0.0))
        assert answer == f"{with_lbe}{runs} with LBE, {without} without it"


def test_above_these_rates(steps: pd.DataFrame) -> None:
    lbe, none = (ends(steps, learning_rate=2e-3, **setting(*each)) for each in ((2.0, 0.5), (0.0,)))
    assert answers()["At 2e-3?"] == f"{trained(lbe)} with LBE, {trained(none)} without it"


def test_normalization_before_each_sublayer() -> None:
    lines = pd.read_csv(ROOT / "results" / "deep_bert" / "runs.csv")
    lines = lines[(lines["model_type"] == "roberta-prelayernorm") & (lines["step"] > 300)]
    shares = lines.groupby(["beta", "seed"])["accuracy"].mean().gt(0.95).groupby("beta").agg(["sum", "size"])
    assert {tuple(row) for row in shares.to_numpy()} == {(5, 5)}
    assert answers()["With normalization before each sublayer?"] == "5 of 5 runs, with LBE and without"


def test_pretrained_encoders() -> None:
    assert answers()["Does LBE improve fine-tuning?"].endswith(f"RTE, CoLA and MRPC, {len(grid('minilm'))} runs")
    base = grid("mpnet").groupby("method")["test"].mean()
    mpnet = " ".join((ROOT / "results" / "mpnet" / "README.md").read_text(encoding="utf-8").split())
    (interval,) = re.findall(r"Student's interval of (\S+ to \S+)", mpnet)
    assert answers()["And on RTE, which MiniLM hardly learns?"] == (
        f"No difference shown: {base[BASELINE]:.4f} without LBE, {base[FEED_FORWARD]:.4f} with it, "
        f"interval of the difference {interval}"
    )
    high = grid("cola/fresh_seeds").groupby("beta")["test"].mean()
    cola = (ROOT / "results" / "cola" / "README.md").read_text(encoding="utf-8")
    ((difference, interval),) = re.findall(r"difference is (\S+), with a Student's interval of (\S+ to \S+)", cola)
    assert (
        f"at 3e-4, on eight other seeds, the score is {high[0]:.3f} without LBE and {high[0.5]:.3f} with beta 0.5 "
        f"(difference {difference}, interval {interval})"
    ) in EVIDENCE
    penalty = penalties_of_healthy_encoders()
    claim = f"states was {short(penalty.min())} to {short(penalty.max())} of the loss at beta 0.05, five times"
    assert claim in " ".join(EVIDENCE.split())


def test_verdicts() -> None:
    page = (ROOT / "results" / "verdicts" / "README.md").read_text(encoding="utf-8")
    all_healthy = next(row for row in table(page, "healthy models") if row[0] == "all")
    (found,) = re.findall(r"Faults found: (\d+ of \d+)", page)
    (first,) = re.findall(r"found (\d+) of 58 faults", " ".join(page.split()))
    assert answers()["How often is the diagnosis right?"] == (
        f"{found} planted faults found ({first} in the first run), "
        f"{all_healthy[2]} false alarms on {all_healthy[1]} healthy models"
    )


def test_the_cost_of_a_step_of_the_deep_transformer() -> None:
    page = (ROOT / "results" / "deep_bert" / "README.md").read_text(encoding="utf-8")
    ((ratio, quartiles),) = re.findall(r"median of ratios by seed ([\d.]+)\s+(\(quartiles [^)]+\))", page)
    assert f"a step takes {ratio} times as long {quartiles}" in (DOCS / "costs.md").read_text(encoding="utf-8")


def test_the_ratios_of_the_grid_are_those_of_its_columns() -> None:
    for _, *cells in table((DOCS / "costs.md").read_text(encoding="utf-8"), "task | AMD"):
        before, after, ratio, other_before, other_after, other_ratio = map(float, cells)
        assert ratio == pytest.approx(after / before, abs=0.06)
        assert other_ratio == pytest.approx(other_after / other_before, abs=0.06)
