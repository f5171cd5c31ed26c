"""README is short, its quickstart runs as printed, and its numbers are those of the committed results."""

import re
from importlib.metadata import metadata
from pathlib import Path

import pandas as pd
import pytest
from pages import table
from programs import ROOT
from studies import (
    BASELINE,
    FEED_FORWARD,
    HIDDEN_STATES,
    at_chosen_rate,
    deep_bert,
    ends,
    grid,
    judged_networks,
    judged_rivals,
    penalties_of_healthy_encoders,
    setting,
    settings_that_train,
    short,
)

from glue_runs.analysis.comparison import holm, mean_difference
from lbe_hf import LBETrainingArguments

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
ONE_LINE = " ".join(TEXT.split())
FIRST_SCREEN = " ".join(TEXT[: TEXT.index("![")].split())
RESULTS = {row[0]: row[1:] for row in table(TEXT, "study | without LBE")}
GLUE = {"rte": "RTE, accuracy", "cola": "CoLA, Matthews correlation", "mrpc": "MRPC, mean of accuracy and F1"}


def cells(ending: str) -> list[str]:
    (found,) = (numbers for name, numbers in RESULTS.items() if name.endswith(ending))
    return found


def test_a_thousand_words_at_most() -> None:
    assert len(TEXT.split()) <= 1000


def test_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"## Quickstart.*?```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert "lbe_loss" in capsys.readouterr().out
    loaded = type(names["model"]).from_pretrained("out").state_dict()  # type: ignore[attr-defined]
    own = names["model"].state_dict()  # type: ignore[attr-defined]
    assert loaded.keys() == own.keys()


def test_relative_links() -> None:
    links = re.findall(r"\]\(((?!https?://)[^)#]+)\)", TEXT)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_package_index_gets_no_figure_and_no_relative_link() -> None:
    shown = str(metadata("lbe-hf").get_payload())
    assert shown.startswith("# lbe_hf")
    assert "![" in TEXT
    assert "![" not in shown
    assert {link.partition("//")[0] for link in re.findall(r"\]\(([^)]+)\)", shown)} == {"https:"}
    assert 0.9 < len(shown.split()) / len(TEXT.split()) < 1


def test_defaults() -> None:
    args = LBETrainingArguments(output_dir="unused")
    for name, default, _ in table(TEXT, "setting | default"):
        value = getattr(args, name.strip("`"))
        shown = {None: "hidden states", False: "false"}.get(value, value)
        assert default.strip('`"') == str(shown)


def trained(runs: pd.DataFrame) -> str:
    return f"{runs['trained'].sum()} of {len(runs)}"


def test_deep_bert() -> None:
    steps = deep_bert()
    fresh = steps[steps["seed"] >= 5]
    none, lbe = ends(fresh, **setting(0.0)), ends(fresh, **setting(2.0, 0.5))
    assert cells("1e-3: runs that train") == [trained(none), trained(lbe)]
    for ending, rates in {
        "six settings of warm-up and clipping, at 1e-3": (1e-3,),
        "at 1e-4 to 3e-4": (1e-4, 2e-4, 3e-4),
    }.items():
        assert cells(ending) == [settings_that_train(beta, *rates) for beta in (0.0, 2.0)]
    without, with_lbe = cells("1e-3: runs that train")
    assert f"learns a synthetic task in {with_lbe} runs with it and in {without} without" in FIRST_SCREEN
    higher = {trained(ends(steps, learning_rate=2e-3, **setting(*each))) for each in ((2.0, 0.5), (0.0,))}
    assert f"(at 2e-3 in {higher.pop()} either way)" in FIRST_SCREEN
    assert not higher


def test_a_second_task() -> None:
    runs = pd.read_csv(ROOT / "results" / "second_task" / "runs.csv")
    accuracy = runs[runs["task"] == "digits"].groupby("beta")["score"].mean()
    assert cells("48 layers, at 1e-3: accuracy") == [f"{accuracy[beta]:.3f}" for beta in (0.0, 2.0)]


def test_tuned_rivals() -> None:
    trained, median = judged_rivals()
    assert cells("[both tuned](results/tuned_rivals/README.md)") == [trained["none"], trained["LBE"]]
    assert cells("median steps to an accuracy of 0.95") == [str(median["none"]), str(median["LBE"])]
    lower = f"{trained['none']} runs then train without it, in {median['none']} steps instead of {median['LBE']}; "
    lower += "at the same rate this setting slows training"
    pre_layer_norm = f"use pre-LayerNorm ({trained['prelayernorm']}, in {median['prelayernorm']} steps)"
    assert f"if you can lower the learning rate ({lower}) or {pre_layer_norm}" in FIRST_SCREEN


def test_minilm() -> None:
    runs = grid("minilm")
    p_values = []
    for task, name in GLUE.items():
        baseline, lbe = (at_chosen_rate(runs, task, method)["test"] for method in (BASELINE, HIDDEN_STATES))
        assert cells(name) == [f"{own.mean():.4f}" for own in (baseline, lbe)]
        p_values.append(mean_difference((lbe - baseline).dropna()).p_value)
    assert "No difference on GLUE is significant; with five seeds the exact test cannot show one." in ONE_LINE
    assert (runs.groupby(["task", "method", "learning_rate"])["seed"].nunique() == 5).all()
    base = grid("mpnet").groupby("method")["test"].mean()
    assert cells("[all-mpnet-base-v2](results/mpnet/README.md) on RTE") == [
        f"{base[method]:.4f}" for method in (BASELINE, FEED_FORWARD)
    ]
    largest = short(penalties_of_healthy_encoders().max())
    where = "At beta 0.05 and rates up to 2e-4, the penalty on MiniLM's hidden states"
    assert f"{where} was at most {largest} of the loss" in ONE_LINE
    assert all(p is None or p > 0.05 for p in holm(p_values))


def test_plain_networks() -> None:
    scores = judged_networks()
    for ending, contest in {"initialization: accuracy": "mlp-default", "He's initialization": "mlp-he"}.items():
        assert cells(ending) == [f"{scores[contest, method].mean():.3f}" for method in ("none", "LBE")]


def test_verdicts_and_costs() -> None:
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    found, first, healthy = re.search(
        r"found (.*?) planted faults \((.*?)\), with no\s+false alarm on (\d+)\s", TEXT
    ).groups()  # type: ignore[union-attr]
    assert f"{found} planted faults found ({first}), 0 false alarms on {healthy} healthy models" in evidence
    ((ratio, quartiles, of_deep_bert),) = re.findall(
        r"([\d.]+) times as long \((quartiles .*?)\), one of the 48 layers ([\d.]+) times", ONE_LINE
    )
    costs = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    measured = re.findall(r"\| fp32 \| LBETrainer \| 3.256 \| ([\d.]+) \((quartiles .*?)\)", costs)
    assert [(f"{float(median):.2f}", spread) for median, spread in measured] == [(ratio, quartiles)]
    assert f"In the BERT of 48 layers and 64 features a step takes {of_deep_bert} times as long" in costs
