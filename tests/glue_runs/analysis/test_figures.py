from pathlib import Path

import pytest
from grids import made_up, made_up_grid

from glue_runs.analysis.table import read_results

pytest.importorskip("matplotlib")

import matplotlib.image

from glue_runs.analysis.figures import draw


def test_pictures(tmp_path: Path) -> None:
    records = [made_up(0.5, 0.5 + 0.01 * seed, seed, learning_rate=rate) for rate in (1e-5, 3e-5) for seed in (1, 2)]
    records += [made_up(0.5, 0.6, seed, beta=beta) for beta in (0.01, 0.05) for seed in (1, 2)]
    records += [made_up(0.5, 0.6, 1, task="rte"), made_up(0.5, 0.6, 1, beta=0.05, task="rte", layers=["x", "y", "z"])]
    folder = made_up_grid(tmp_path, records)
    paths = draw(folder, read_results(folder))
    assert [path.name for path in paths] == [
        "scores.png",
        "learning_rates.png",
        "entropy_cola_hidden_states.png",
        "entropy_rte_hidden_states.png",  # beside no baseline, whose layers are others
    ]
    widths = [matplotlib.image.imread(path).shape[1] for path in paths]
    assert widths[2] > widths[3]


def test_nothing_to_draw(tmp_path: Path) -> None:
    folder = made_up_grid(tmp_path, [], open_runs=("later",))
    assert draw(folder, read_results(folder)) == []
