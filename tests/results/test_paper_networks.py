"""The study chooses on validation and judges on test, and trains what it says."""

import re
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pages import table
from programs import ROOT, program
from scipy import stats
from studies import judged_networks

AUTOENCODERS = {depth: f"autoencoder-{depth}" for depth in (1, 5, 10, 25, 50)}
DENSE = "Do 50 dense ReLU layers learn? Settings were chosen on validation images; LBE had four times as many"
EVIDENCE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return program("results/paper_networks/study.py")


def test_runs_of_the_choice(study: ModuleType) -> None:
    runs = list(study.choice(NOTHING))
    assert len({run.name for run in runs}) == len(runs)
    assert {run.seed for run in runs} == {0}
    rates = {run.learning_rate for run in runs if run.contest == "mlp-he" and run.method == "none"}
    assert rates == {1e-4, 3e-4, 1e-3, 3e-3}
    assert {run.learning_rate for run in runs if run.contest == "resnet"} == {0.1}
    assert {run.contest for run in runs if run.method == "selu"} == {"mlp-default", "mlp-he", "cnn-default", "cnn-he"}
    assert all((run.beta > 0) == (run.method == "LBE") for run in runs)


NOTHING = pd.DataFrame({"run": [], "validation": []})


def results(scores: dict[Any, float]) -> pd.DataFrame:
    return pd.DataFrame({"run": [run.name for run in scores], "validation": list(scores.values())})


def test_the_best_mean_of_the_finalists_is_judged_once_the_choice_is_complete(study: ModuleType) -> None:
    """By the mean over both seeds, and not by the best single run; a run that diverged counts as 0."""
    first = [run for run in study.choice(NOTHING) if run.contest == "autoencoder-5"]
    by_setting = {(1.5, 0.2): (0.9, 0.1), (2.0, 1.0): (0.6, 0.6), (2.5, 1.5): (0.95, np.nan), (1.5, 0.5): (0.5, 1.0)}

    def scores(runs: list[Any]) -> dict[Any, float]:
        return {run: by_setting.get((run.alpha, run.beta), (0.3, 0.3))[run.seed] for run in runs}

    done = scores(first)
    second = [run for run in study.choice(results(done)) if run.seed == 1]
    assert {(run.alpha, run.beta) for run in second if run.method == "LBE"} == {(1.5, 0.2), (2.0, 1.0), (2.5, 1.5)}
    assert {run.beta for run in second if run.method == "none"} == {0.0}
    assert list(study.judgement(results(done))) == []
    done |= scores(second)
    judged = list(study.judgement(results(done)))
    assert len(judged) == 20
    assert {run.seed for run in judged} == set(range(100, 110))
    assert {run.contest for run in judged} == {"autoencoder-5"}
    assert {(run.alpha, run.beta) for run in judged if run.method == "LBE"} == {(2.0, 1.0)}
    assert {run.beta for run in judged if run.method == "none"} == {0.0}
    assert list(study.judgement(results({run: score for run, score in done.items() if run != second[0]}))) == []


@pytest.mark.parametrize(
    ("contest", "method", "alpha", "shorter"),
    [
        ("mlp-default", "LBE", 0.5, "--depth 6 --width 8 --num_train_epochs 1"),
        ("mlp-he", "selu", 1.0, "--depth 3 --width 8 --num_train_epochs 1"),
        ("cnn-he", "batch", 1.0, "--network cnn --depth 3 --num_train_epochs 1"),
        ("autoencoder-1", "LBE", 2.0, "--paper --width 8 --num_train_epochs 1"),
        ("resnet", "LBE", 1.5, "--paper --blocks 1 --stem imagenet --max_steps 2"),
    ],
)
def test_a_run(
    study: ModuleType, monkeypatch: pytest.MonkeyPatch, contest: str, method: str, alpha: float, shorter: str
) -> None:
    beta = 0.5 if method == "LBE" else 0.0
    run = study.Run(contest, method, 100, 1e-3, alpha, beta)
    monkeypatch.setitem(study.ARGUMENTS, run.network, shorter)
    line = study.execute(run).iloc[0]
    assert 0 <= line["validation"] <= 1
    assert 0 <= line["test"] <= 1
    assert (line["contest"], line["method"], line["alpha"]) == (contest, method, alpha)


def test_only_judged_seeds_have_a_score_on_the_test_images(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(study.ARGUMENTS, "mlp", "--depth 3 --width 8 --num_train_epochs 1")
    assert pd.isna(study.execute(study.Run("mlp-he", "selu", 0, 1e-3, 1.0, 0.0)).iloc[0]["test"])


def test_report_has_students_interval_of_the_paired_differences() -> None:
    report = program("results/paper_networks/report.py")
    none, lbe = [0.5, 0.7, 0.6], [0.8, None, 0.9]
    settings = {"contest": "mlp-he", "learning_rate": 1e-3, "alpha": 0.5, "beta": 0.1}
    lines = [{**settings, "method": "none", "seed": seed, "test": test} for seed, test in enumerate(none, 100)]
    lines += [{**settings, "method": "LBE", "seed": seed, "test": test} for seed, test in enumerate(lbe, 100)]
    lines.append({**settings, "method": "LBE", "seed": 0, "test": None})  # of the choice
    rows = report.table(pd.DataFrame(lines)).set_index("method")
    differences = [0.3, 0.0 - 0.7, 0.3]  # a diverged run scores 0
    mean, half = np.mean(differences), 4.302653 * np.std(differences, ddof=1) / np.sqrt(3)  # 97.5% of Student's t
    assert stats.t.ppf(0.975, 2) == pytest.approx(4.302653)
    assert rows.loc["none", "LBE minus it"] == f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"
    assert rows.loc["LBE", "test (range)"] == "0.567 (0.000 to 0.900)"
    assert rows.loc["LBE", "seeds"] == 3
    assert rows.loc["LBE", "LBE minus it"] == ""


def test_the_page_has_the_table_and_its_summary_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "results" / "paper_networks" / "README.md").read_text(encoding="utf-8")
    program("results/paper_networks/report.py").main()
    printed = capsys.readouterr().out
    assert set(printed.splitlines()) <= set(page.splitlines())
    summary = " ".join(page[: page.index("## What was done")].split())
    decimals = re.findall(r"\b0\.\d{3}\b", summary)
    assert len(decimals) > 10
    assert set(decimals) <= set(re.findall(r"\b0\.\d{3}\b", printed))

    scores = judged_networks()
    assert scores.shape == (10, 4 * 4 + 6 * 2)
    assert scores.notna().all(axis=None)
    signs = {pair: sign(scores[pair[0], "LBE"] - scores[pair]) for pair in scores if pair[1] != "LBE"}
    better, worse = (list(signs.values()).count(value) for value in (1, -1))
    assert f"Of {len(signs)} comparisons LBE is better in {better} and worse in {worse} by uncorrected" in summary
    assert f"The table has {len(signs)} of them, uncorrected, and the p-values" in " ".join(page.split())

    tests = {pair: stats.ttest_rel(scores[pair[0], "LBE"], scores[pair]).pvalue for pair in signs}
    kept: list[int] = []  # Holm: the smallest p-value times 18, the next one times 17, until one is above 0.05
    for factor, pair in zip(range(len(tests), 0, -1), sorted(tests, key=tests.__getitem__), strict=True):
        if factor * tests[pair] > 0.05:
            break
        kept.append(signs[pair])
    assert f"better in {kept.count(1)} and worse in {kept.count(-1)} after Holm's correction" in summary
    learned = (scores > 0.15).sum()  # chance is 0.10
    dense, convolutions = (learned[network, "LBE"] for network in ("mlp-default", "cnn-default"))
    claim = f"lets 50 dense ReLU layers learn in {dense} of 10 runs, and 50 convolutions in {convolutions} of 10"
    assert claim in summary
    differences = scores["cnn-he", "LBE"] - scores["cnn-he", "none"]
    assert (differences > 0).all()
    assert (scores["cnn-he", "none"] < 0.15).sum() == 1


def test_the_chosen_rates_at_the_edge() -> None:
    page = " ".join((ROOT / "results" / "paper_networks" / "README.md").read_text(encoding="utf-8").split())
    runs = pd.read_csv(ROOT / "results" / "paper_networks" / "runs.csv")
    plain = runs[runs["contest"].str.startswith(("mlp", "cnn"))]
    judged = plain[plain["seed"] >= 100].groupby(["method", "contest"])["learning_rate"].first()
    edge = judged[judged == plain["learning_rate"].max()]
    assert edge.groupby("method").agg(lambda own: own.index.get_level_values("contest").tolist()).to_dict() == {
        "LBE": ["cnn-default"],
        "batch": ["cnn-default", "cnn-he"],
        "selu": ["cnn-default", "cnn-he", "mlp-default"],
    }
    claim = (
        "For SELU in three of the four contests of plain networks, for BatchNorm with convolutions and for LBE with "
        "convolutions at PyTorch's initialization, the chosen rate is the highest that was tried"
    )
    assert claim in page


def test_the_page_of_plain_networks_names_the_study() -> None:
    page = " ".join((ROOT / "docs" / "plain_networks.md").read_text(encoding="utf-8").split())
    dense = judged_networks()["mlp-default", "LBE"]
    claim = f"a mean of {dense.mean():.3f} over ten seeds ({dense.min():.3f} to {dense.max():.3f})"
    assert claim in page


def sign(differences: pd.Series) -> int:
    """Of Student's 95% interval, or 0 if it contains zero."""
    half = 2.262157 * differences.std() / np.sqrt(len(differences))  # 97.5% of Student's t, 9 degrees of freedom
    return int(differences.mean() > half) - int(differences.mean() < -half)


def test_the_evidence_has_these_numbers() -> None:
    scores = judged_networks().mean().round(3)
    rows = {question: answer for _, question, answer in table(EVIDENCE, "study | question")}
    default, he = (scores[network] for network in ("mlp-default", "mlp-he"))
    assert rows[DENSE] == (
        f"PyTorch's initialization: {default['none']:.3f} without LBE, {default['LBE']:.3f} with it, "
        f"{default['batch']:.3f} with BatchNorm (no difference to LBE shown); "
        f"He's: {he['none']:.3f} and {he['LBE']:.3f}"
    )
    convolutions = scores["cnn-default"]
    assert rows["And 50 convolutions at PyTorch's initialization?"] == (
        f"{convolutions['none']:.3f} without LBE, {convolutions['LBE']:.3f} with it, "
        f"{convolutions['batch']:.3f} with BatchNorm"
    )
    tests = judged_networks()
    signs = {depth: sign(tests[kind, "LBE"] - tests[kind, "none"]) for depth, kind in AUTOENCODERS.items()}
    assert signs == {1: 1, 5: 1, 10: 0, 25: 1, 50: 0}
    five = scores[AUTOENCODERS[5]]
    assert rows["Do variational autoencoders reconstruct better (SSIM), with LBE tuned and the baseline not?"] == (
        f"5 layers: {five['none']:.3f} without LBE, {five['LBE']:.3f} with it; at 1 and 25 layers also better, "
        "at 10 and 50 no difference shown"
    )
