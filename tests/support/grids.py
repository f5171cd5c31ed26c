"""Grids whose results are made up, so that what a report must say of them is known."""

import json
from pathlib import Path
from typing import Any

from glue_runs.analysis.shapes import DESCRIBED_BY
from glue_runs.analysis.store import GridFolder

ENVIRONMENT = {"device": "abacus", "torch": "0.0"}


def made_up(
    validation: float,
    test: float,
    seed: int,
    beta: float = 0.0,
    alpha: float | None = None,
    learning_rate: float = 1e-5,
    penalty: float = 0.01,
    task: str = "cola",
    **more: Any,
) -> dict[str, Any]:
    """The record of one run with these scores."""
    metric = {"cola": "matthews_correlation", "rte": "accuracy", "mnli": "accuracy"}[task]
    method = "baseline" if beta == 0 else "LBE on hidden_states"
    history = [
        {"step": step, "task_loss": 0.5, "lbe_loss": 0.5 * penalty * (beta > 0), "entropy_mean": 0.4}
        | {"entropies": [0.3, 0.4, 0.5], "targets": [0.5, 0.5, 0.6] if beta > 0 else []}
        for step in (10, 20)
    ]
    return {
        **{"task": task, "model": "m", "protocol": "default", "fixed_settings": "", "method": method, "settings": {}},
        **{"learning_rate": learning_rate, "alpha": 0.5 if beta > 0 and alpha is None else alpha, "beta": beta},
        **{"seed": seed, "history": history, "layers": ["a", "b", "c"], "environment": ENVIRONMENT},
        "metrics": {"validation": {"loss": 0.5, metric: validation}, "test": {"loss": 0.6, metric: test}},
        **{"config": {}, "seconds": 60.0, "examples_per_second": 100.0, "peak_memory_mib": 500.0},
        **more,
    }


def description(record: dict[str, Any]) -> dict[str, Any]:
    """What `grid.json` holds of a run with this record."""
    return {name: record[name] for name in (*DESCRIBED_BY, "settings")}


def made_up_grid(path: Path, records: list[dict[str, Any]], open_runs: tuple[str, ...] = ()) -> GridFolder:
    """A grid folder in which these runs are done, and `open_runs` are not."""
    folder = GridFolder(path)
    done = {f"run{index:02d}": record for index, record in enumerate(records)}
    wanted = {**done, **dict.fromkeys(open_runs, made_up(0.5, 0.5, 99))}
    folder.add({name: description(record) for name, record in wanted.items()}, "python -m glue_runs.grid")
    for name, record in done.items():
        folder.run_dir(name).mkdir()
        (folder.run_dir(name) / "result.json").write_text(json.dumps(record))
    return folder
