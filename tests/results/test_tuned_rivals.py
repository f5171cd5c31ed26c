"""The choice among the settings of the tuned rivals, their judgement, and which runs it needs."""

import math
import re
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from pages import table
from programs import ROOT, program
from studies import deep_bert, ends, judged_rivals, setting, settings_that_train

LINES = 20  # of a run: one for every 20 of 400 steps
PAGE = (ROOT / "results" / "tuned_rivals" / "README.md").read_text(encoding="utf-8")
SUMMARY = " ".join(PAGE[: PAGE.index("## What was done")].split())


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return program("results/tuned_rivals/study.py")


@pytest.fixture(scope="module")
def report() -> ModuleType:
    return program("results/tuned_rivals/report.py")


def lines(run: object, learned_at: int | None) -> pd.DataFrame:
    """A run that is right from a step on, or never."""
    steps = np.arange(1, LINES + 1) * 20
    accuracy = np.where(steps >= (learned_at or np.inf), 1.0, 0.5)
    return pd.DataFrame({"step": steps, "accuracy": accuracy}).assign(**vars(run), run=run.name)  # type: ignore[attr-defined]


def learned_at(run: object) -> int | None:
    """Without LBE up to 3e-4, faster at higher rates; with it up to 5e-4; one rival on even seeds only; one never."""
    rate, beta = run.learning_rate, run.beta  # type: ignore[attr-defined]
    if run.initialization == "gpt2" and run.seed % 2:  # type: ignore[attr-defined]
        return None
    if run.initialization == "deepnorm":  # type: ignore[attr-defined]
        return None
    highest = 5e-4 if beta == 2.0 else 3e-4
    return round(0.03 / rate) // 20 * 20 + 20 if rate <= highest else None


def test_the_whole_study_from_the_choice_to_the_judgement(
    study: ModuleType, report: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, rounds = pd.DataFrame(columns=["run"]), []
    while missing := [run for run in study.plan(done) if run.name not in set(done["run"])]:
        runs = {run.name: run for run in missing}
        rounds.append(len(runs))
        done = pd.concat([done, *(lines(run, learned_at(run)) for run in runs.values())], ignore_index=True)
    assert rounds[0] == 180 + 40
    assert rounds[-1] == 5 * 15
    assert sum(rounds[1:-1]) < 150  # of 230 that all five seeds of all 75 candidates would take, and none is missing
    outcomes = study.choice.rivals(done)
    best = study.choice.chosen(outcomes).set_index("rival")
    assert best["learning_rate"].to_dict() | {"deepnorm": 0} == {
        "LBE": 5e-4,
        "none": 3e-4,
        "gpt2": 3e-4,
        "prelayernorm": 3e-4,
        "deepnorm": 0,
    }
    monkeypatch.setattr(report.pd, "read_csv", lambda path: done)
    report.main()
    printed = capsys.readouterr().out
    assert "| LBE | learning rate 0.0005, alpha " in printed
    assert "15 of 15 (78% to 100%) | 80 (80 to 80) |" in printed
    assert "| gpt2 | learning rate 0.0003 | 8 of 15 (27% to 79%) |" in printed
    assert "| deepnorm | 6.1e-05 (0.00024) |" in printed  # 2 / 2^15, and four times that
    assert "| none | 1 (1) |" in printed
    assert "| 0.0005 | 0 of 18 | 0.500 (0.500 to 0.500) | 18 of 18 |  |" in printed
    assert "Mean difference 0.20, Student's interval 0.20 to 0.20." in printed


def test_no_run_is_needed_that_cannot_change_the_choice(study: ModuleType) -> None:
    """Another setting is run on further seeds only if it could still be the best."""
    choice = study.choice
    first = [study.Run(seed, rate) for seed in range(3) for rate in (1e-4, 2e-4, 3e-4)]
    leader = [study.Run(seed, 3e-4) for seed in (3, 4)]
    reached = {3e-4: 100, 2e-4: 120, 1e-4: None}
    steps = pd.concat([lines(run, reached[run.learning_rate]) for run in [*first, *leader]])
    needed = {(setting["learning_rate"], seed) for setting, seed in choice.undecided(choice.rivals(steps))}
    assert needed == set()  # with two more runs at step 0 the median at 2e-4 is still 120
    reached[2e-4] = 80
    steps = pd.concat([lines(run, reached[run.learning_rate]) for run in [*first, *leader]])
    needed = {(setting["learning_rate"], seed) for setting, seed in choice.undecided(choice.rivals(steps))}
    assert needed == {(2e-4, 3)}


@pytest.mark.parametrize("draw", range(6))
def test_the_choice_is_that_of_all_seeds_of_all_settings(study: ModuleType, draw: int) -> None:
    choice, random = study.choice, np.random.default_rng(draw)
    runs = [study.Run(seed, rate / 1e4) for seed in range(5) for rate in range(1, 9)]
    steps = pd.concat([lines(run, random.choice([60, 80, 80, 100, None])) for run in runs], ignore_index=True)
    steps["accuracy"] -= random.uniform(0, 0.01, len(steps))  # decides where trained runs and steps are equal
    every = choice.rivals(steps)
    done = every[every["seed"] == 0]
    while needed := list(choice.undecided(done)):
        wanted = pd.DataFrame([setting[choice.SETTING].to_dict() | {"seed": seed} for setting, seed in needed])
        done = pd.concat([done, every.merge(wanted)], ignore_index=True)
    assert choice.chosen(done)["learning_rate"].item() == choice.chosen(every)["learning_rate"].item()


def test_the_page_has_the_tables(report: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    report.main()
    _, *printed = capsys.readouterr().out.splitlines()  # the first line counts the runs
    assert set(printed) <= set(PAGE.splitlines())


def test_the_summary_has_what_became_of_the_judged_runs() -> None:
    trained, median = judged_rivals()
    assert f"{trained['none']} runs train, with LBE (1e-3) {trained['LBE']}." in SUMMARY
    assert f"To an accuracy of 0.95 they take a median of {median['none']} and {median['LBE']} steps" in SUMMARY
    assert f"trains {trained['prelayernorm']} runs, with a median of {median['prelayernorm']} steps" in SUMMARY
    for rival in ("gpt2", "deepnorm"):
        assert f"train {trained[rival]} runs each, with a median of {median[rival]} steps" in SUMMARY


def test_the_p_values_of_the_summary_are_those_of_the_table() -> None:
    p_values = {row[0]: row[2] for row in table(PAGE, "LBE against | McNemar")}
    plain, corrected = re.findall(r"log-rank test, p = ([\d.]+), corrected ([\d.]+)\)", SUMMARY)[0]
    assert p_values["none"] == f"{plain} ({corrected})"
    (pre,) = re.findall(r"faster or slower \(p = ([\d.]+)\)", SUMMARY)
    assert p_values["prelayernorm"] == f"{pre} ({pre})"
    for rival in ("gpt2", "deepnorm"):
        assert float(p_values[rival].split("(")[1][:-1]) < 1e-5


def test_the_summary_has_the_sums_of_the_robustness() -> None:
    lines = pd.read_csv(ROOT / "results" / "tuned_rivals" / "runs.csv")
    low, every = (1e-4, 2e-4, 3e-4), (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)
    for claim, rates in {
        "{} runs train with LBE (alpha 0.5, beta 2), without it {}": every,
        "{} runs train with LBE and {} without": (1e-3,),
        "At 5e-4 it is {} and {}": (5e-4,),
    }.items():
        assert claim.format(*(settings_that_train(beta, *rates) for beta in (2, 0))) in SUMMARY
    assert f"without it {settings_that_train(0, *low)} train, with it {settings_that_train(2, *low)}" in SUMMARY
    (shown,) = re.findall(r"The other (\d+ end at an accuracy of [\d.]+ to [\d.]+)", SUMMARY)
    last = lines[(lines["step"] > 300) & (lines["alpha"] == 0.5) & (lines["beta"] == 2) & (lines["seed"] < 3)]
    accuracy = last[last["learning_rate"].isin(low)].groupby("run")["accuracy"].mean()
    short = accuracy[accuracy <= 0.95]
    assert shown == f"{len(short)} end at an accuracy of {short.min():.3f} to {short.max():.3f}"
    steps = deep_bert()
    fresh = steps[steps["seed"] >= 5]
    with_lbe, without = (ends(fresh, **setting(*each))["trained"] for each in ((2.0, 0.5), (0.0,)))
    claim = f"{with_lbe.sum()} of {len(with_lbe)} runs train with LBE and {without.sum()} of {len(without)} without"
    assert claim in SUMMARY
    higher = [ends(steps, learning_rate=2e-3, **setting(*each))["trained"] for each in ((2.0, 0.5), (0.0,))]
    assert (
        "At 2e-3, run later, {} of {} train with it and {} of {} without".format(
            *(number for own in higher for number in (own.sum(), len(own)))
        )
        in SUMMARY
    )
    ((mean, interval),) = re.findall(r"difference of ([\d.]+) in the share of settings, ([\d.]+ to [\d.]+)", SUMMARY)
    assert f"Mean difference {mean}, Student's interval {interval}." in PAGE
    border = lines[(lines["initialization"] == "default") & (lines["beta"] == 0) & (lines["learning_rate"] == 5e-4)]
    border = border[(border["seed"] < 3) & (border["step"] > 300)]
    border = border.groupby(["max_grad_norm", "run"])["accuracy"].mean()
    failures = border[border <= 0.95].index.get_level_values("max_grad_norm")
    assert f"the {len(failures)} failures have a clipping of {set(failures).pop():g}" in SUMMARY
    assert len(set(failures)) == 1


def test_the_summary_has_the_pairs_at_the_same_rate() -> None:
    lines = pd.read_csv(ROOT / "results" / "tuned_rivals" / "runs.csv")
    same = (lines["initialization"] == "default") & (lines["alpha"] == 0.5) & lines["seed"].isin([0, 1, 2])
    lines = lines[same & lines["beta"].isin([0.0, 2.0]) & (lines["learning_rate"] < 1e-3)]
    cell = ["learning_rate", "warmup_steps", "max_grad_norm", "seed"]
    steps = lines[lines["accuracy"] > 0.95].groupby([*cell, "beta"])["step"].min().unstack()
    slower, faster = int((steps[2] > steps[0]).sum()), int((steps[2] < steps[0]).sum())
    assert len(steps) == 72
    assert steps.notna().all().all()
    assert f"in {slower} of {len(steps)} pairs, and fewer in {faster}" in SUMMARY
    medians = steps.groupby("learning_rate").median()
    spread = {beta: f"{own.min():.0f} to {own.max():.0f}" for beta, own in medians.items()}
    assert f"the medians are {spread[2]} steps with it, and {spread[0]} without" in SUMMARY


def test_the_summary_has_the_pairs_of_the_other_settings() -> None:
    lines = pd.read_csv(ROOT / "results" / "tuned_rivals" / "runs.csv")
    same = (lines["initialization"] == "default") & (lines["warmup_steps"] == 0) & (lines["max_grad_norm"] == 1)
    lines = lines[same & lines["seed"].isin([0, 1, 2]) & (lines["learning_rate"] < 1e-3)].fillna({"alpha": 0.0})
    lines["reached"] = lines["step"].where(lines["accuracy"] > 0.95, np.inf)
    steps = lines.groupby(["alpha", "beta", "learning_rate", "seed"])["reached"].min()
    none = steps.xs(0.0, level="beta").droplevel("alpha")
    counted = {}
    for row in table(PAGE, "alpha, beta | LBE slower"):
        own = steps[tuple(map(float, row[0].split(", ")))]
        pairs = [(own[pair], none[pair]) for pair in own.index]
        counted[row[0]] = sum(lbe > alone for lbe, alone in pairs), sum(lbe < alone for lbe, alone in pairs)
        assert row[1:] == [f"{number} of {len(pairs)}" for number in counted[row[0]]]
    assert (
        "alpha 0.7 with beta 0.5 is slower in {} of 12 pairs and faster in {}".format(*counted["0.7, 0.5"]) in SUMMARY
    )
    slower, faster = zip(
        *(counts for name, counts in counted.items() if name not in ("0.7, 0.5", "0.5, 2")), strict=True
    )
    assert f"slower in {min(slower)} to {max(slower)} and faster in {min(faster)} to {max(faster)}" in SUMMARY


def test_the_summary_has_the_pairs_of_the_judgement() -> None:
    lines = pd.read_csv(ROOT / "results" / "tuned_rivals" / "runs.csv")
    lines = lines[(lines["seed"] >= 100) & (lines["initialization"] == "default")]
    lines["reached"] = lines["step"].where(lines["accuracy"] > 0.95, np.inf)
    steps = lines.groupby(["seed", "beta"])["reached"].min().unstack()
    faster, slower = int((steps[2.0] < steps[0.0]).sum()), int((steps[2.0] > steps[0.0]).sum())
    tails = sum(math.comb(faster + slower, k) for k in range(min(faster, slower) + 1))
    p = 2 * tails / 2 ** (faster + slower)
    claim = f"faster on {faster} of {len(steps)} seeds and slower on {slower} (sign test, p = {p:.2g}, uncorrected)"
    assert claim in SUMMARY
