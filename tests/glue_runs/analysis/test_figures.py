from pathlib import Path
from typing import Any

import pytest
from grids import made_up

from glue_runs.analysis.table import tabulate

pytest.importorskip("matplotlib")

import matplotlib.image

from glue_runs.analysis.figures import draw


def names(folder: Path, runs: list[dict[str, Any]]) -> list[str]:
    records = {str(index): {"diverged": False, **record} for index, record in enumerate(runs)}
    return [path.name for path in draw(folder, tabulate(records), records)]


def test_figures(tmp_path: Path) -> None:
    runs = [made_up(0.5, 0.5 + 0.01 * seed, seed, learning_rate=rate) for rate in (1e-5, 3e-5) for seed in (1, 2)]
    runs += [made_up(0.5, 0.6, seed, beta=beta) for beta in (0.01, 0.05) for seed in (1, 2)]
    runs += [made_up(0.5, 0.6, 1, task="rte"), made_up(0.5, 0.6, 1, beta=0.05, task="rte", layers=["x", "y", "z"])]
    drawn = names(tmp_path, runs)
    assert drawn == [
        "scores.png",
        "learning_rates.png",
        "entropy_cola_hidden_states.png",
        "entropy_rte_hidden_states.png",  # beside no baseline, whose layers are others
    ]
    widths = [matplotlib.image.imread(tmp_path / name).shape[1] for name in drawn]
    assert widths[2] > widths[3]


def test_runs_that_diverged_have_no_part_in_the_entropies(tmp_path: Path) -> None:
    nan = float("nan")
    line = {"step": 10, "task_loss": nan, "lbe_loss": nan, "entropies": [nan] * 3, "targets": [nan] * 3}
    diverged = made_up(0.5, 0.5, 2, beta=0.05, history=[line], diverged=True)
    assert names(tmp_path, [diverged]) == ["scores.png", "learning_rates.png"]
    assert names(tmp_path, [made_up(0.5, 0.5, 1, beta=0.05), diverged])[2:] == ["entropy_cola_hidden_states.png"]


def test_methods_with_names_that_are_no_file_names(tmp_path: Path) -> None:
    long = "a" * 300
    runs = [made_up(0.5, 0.6, 1, beta=0.05, method=f"LBE on {name}") for name in ("a(b|c)", "a(b,c)", long)]
    drawn = names(tmp_path, runs)[2:]
    assert len(set(drawn)) == 3
    assert [name[:20] for name in drawn] == ["entropy_cola_a_b_c__"] * 2 + ["entropy_cola_aaaaaaa"]
    assert all((tmp_path / name).is_file() for name in drawn)


def test_runs_that_logged_other_steps_or_no_entropies(tmp_path: Path) -> None:
    runs = [made_up(0.5, 0.5, seed, beta=0.05) for seed in (1, 2, 3)]
    runs[1]["history"] = runs[1]["history"][:1]
    for line in runs[2]["history"]:
        line["entropies"] = line["targets"] = []
    assert names(tmp_path, runs)[2:] == ["entropy_cola_hidden_states.png"]
    assert names(tmp_path, runs[2:])[2:] == []


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert names(tmp_path, []) == []
    assert names(tmp_path, [made_up(float("nan"), 0.5, 1)]) == []


def test_names_with_dollar_signs_are_not_mathematics(tmp_path: Path) -> None:
    runs = [made_up(0.5, 0.6, 1, beta=0.05, method=r"LBE on .*query$|.*layer\.\w+$")]
    assert len(names(tmp_path, runs)) == 3
