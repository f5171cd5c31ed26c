"""The study of the mechanism: its runs, what each variant changes, and its tests."""

import math
from collections import Counter
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from pages import table
from programs import ROOT, program
from studies import variants_that_train


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return program("results/mechanism/study.py")


def test_the_runs_of_the_protocol(study: ModuleType) -> None:
    runs = {run.name: run for run in study.plan(pd.DataFrame(columns=["run"]))}
    assert len(runs) == (6 + 1) * 15
    assert set(Counter(run.variant for run in runs.values()).values()) == {15}


def test_floor_and_one_sided_against_a_hand_calculation(study: ModuleType) -> None:
    """With beta 2: a quarter of the floor of the variance; targets of 0.5 nats, of which 0.9 costs nothing."""
    floor, one_sided = (kind(3, beta=2.0, alpha=0.5) for kind in (study.Floor, study.OneSided))
    entropies = torch.tensor([0.1, 0.3, 0.9])
    assert one_sided(entropies).item() == pytest.approx(2 * (0.4**2 + 0.2**2) / 3)
    at_floor = (math.e - 1) / (math.pi * math.e)
    assert math.log(1 + math.pi * math.e * at_floor) / 2 == pytest.approx(0.5)
    variances = torch.tensor([at_floor / 4, at_floor, 2.0])
    assert floor(variances).item() == pytest.approx(2 * (0.5 * 0.75) ** 2 / 3)
    collapsed = torch.zeros(3)
    assert floor(collapsed).item() == one_sided(collapsed).item() == pytest.approx(0.5)


@pytest.fixture
def short_runs(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 steps and two layers."""
    arguments = study.deep_bert.Arguments

    def short(**settings: Any) -> Any:
        return arguments(**{**settings, "max_steps": 40, "depth": 2})

    monkeypatch.setattr(study.deep_bert, "Arguments", short)


def test_lbe_is_that_of_the_judgement(study: ModuleType, short_runs: None) -> None:
    """So that its runs need not be repeated."""
    rivals = program("results/tuned_rivals/study.py")
    judged = rivals.execute(rivals.Run(100, 1e-3, beta=2.0))
    own = study.execute(study.Run(100, "LBE"))
    pd.testing.assert_frame_equal(own[["step", "accuracy", "task_loss"]], judged[["step", "accuracy", "task_loss"]])
    lines = pd.concat([judged, judged.assign(seed=0), judged.assign(max_grad_norm=0.1), judged.assign(beta=0.0)])
    pd.testing.assert_frame_equal(program("results/outcomes.py").with_lbe(lines), judged)


def test_each_variant_does_something_else(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, short_runs: None
) -> None:
    monkeypatch.setattr(study, "FIRST_STEPS", 20)
    variants = ("LBE", "floor", "one-sided", "additive", "feed-forward and pooler", "first 100 steps")
    runs = {variant: study.execute(study.Run(100, variant)).set_index("step") for variant in variants}
    penalties = pd.DataFrame({variant: lines["lbe_loss"] for variant, lines in runs.items()})
    assert penalties.index.to_list() == [20, 40]
    lbe = penalties.pop("LBE")
    assert penalties.pop("first 100 steps").to_list() == [lbe[20], 0]
    for variant, own in penalties.items():
        assert (own != lbe).any(), variant


def test_the_targets_stay_fixed(study: ModuleType, monkeypatch: pytest.MonkeyPatch, short_runs: None) -> None:
    trainers = []
    made = study.deep_bert.trainer_for
    monkeypatch.setattr(study.deep_bert, "trainer_for", lambda *args: trainers.append(made(*args)) or trainers[-1])
    for variant in ("LBE", "targets fixed"):
        study.execute(study.Run(100, variant))
    learned, fixed = (trainer.lbe.alpha.tolist() for trainer in trainers)
    assert fixed == [0.5] * 3
    assert all(target != 0.5 for target in learned)


def test_the_report_compares_each_variant_with_lbe() -> None:
    report = program("results/mechanism/report.py")
    never = {"LBE": set(), "none": set(range(15)), "floor": set(range(8)), "additive": {3}}
    runs = pd.DataFrame(
        [
            {
                "variant": variant,
                "seed": seed,
                "trained": seed not in lost,
                "step": float("inf") if seed in lost else 80.0,
            }
            for variant, lost in never.items()
            for seed in range(15)
        ]
    )
    column = report.variants(runs)["p (with Holm's correction)"].fillna("").to_dict()
    assert column == {"LBE": "", "none": "", "floor": "0.0078 (0.016)", "additive": "1 (1)"}  # 2 / 2^8


def test_the_page_has_the_table_and_its_summary_the_runs_and_p_values(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "results" / "mechanism" / "README.md").read_text(encoding="utf-8")
    program("results/mechanism/report.py").main()
    _, *printed = capsys.readouterr().out.splitlines()  # the first line counts the runs
    assert set(printed) <= set(page.splitlines())
    summary = " ".join(page[: page.index("## What was done")].split())
    trained = variants_that_train()
    assert f"alpha 0.5 and beta 2, learns in {trained['LBE']} runs" in summary
    corrected = {row[0]: float(row[3].partition("(")[2][:-1]) for row in table(page, "variant | trained") if row[3]}
    needed = {variant for variant, p in corrected.items() if p < 0.05}
    for variant, verb in {"one-sided": "trains", "feed-forward and pooler": "train", "floor": "train"}.items():
        runs = "runs trains" if verb == "trains" else "runs train"
        assert f"{trained[variant]} {runs} (corrected p = {corrected[variant]:.2g})" in summary
        needed.remove(variant)
    assert needed == set()
    for variant in ("targets fixed", "first 100 steps", "additive"):
        assert f"{trained[variant]} runs train with" in summary
    assert f"The page makes {len(corrected)} tests." in " ".join(page.split())
    lines = pd.read_csv(ROOT / "results" / "mechanism" / "runs.csv")
    steps = lines[lines["accuracy"] > 0.95].groupby(["variant", "seed"])["step"].min()
    reached = {variant: f"{len(steps[variant])} of 15" for variant in ("one-sided", "floor")}
    assert f"{reached['one-sided']} one-sided runs and {reached['floor']} with the floor reach 0.95" in summary
    assert {steps[variant].median() for variant in reached} == {60}
    assert "at a median of 60 steps" in summary
