"""The results of a grid as one table, a row a run."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ..finetune.record import SETTING, SETUP
from ..tasks.glue import get_task
from .store import GridFolder


def read_results(folder: GridFolder) -> pd.DataFrame:
    """The runs that are done, in the order of the grid.

    Columns are what describes a run; `validation`, `test` and, for MNLI, `test_mismatched`, which are the scores that
    GLUE ranks by; each metric and loss of each split, as in `test_loss`; `penalty`, relative to the task loss, its
    mean over training; `task_loss` and `entropy` (mean over layers, in nats) as last logged; and what the run cost.

    Raises:
        InputError: the folder is that of no grid, or a file in it is damaged.
    """
    rows = [_row(name, result) for name in folder.runs if (result := folder.result(name)) is not None]
    table = pd.DataFrame(rows, columns=None if rows else ["name", *SETUP, "method", *SETTING, "seed"])
    return table.astype({"alpha": float})  # of the baseline, NaN and not None


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    score = get_task(result["task"]).scores[-1]
    history = result["history"]
    described = {key: result[key] for key in (*SETUP, "method", *SETTING, "seed")}
    metrics = result["metrics"].items()
    return {
        "name": name,
        **described,
        **{split: values[score] for split, values in metrics},
        **{f"{split}_{metric}": value for split, values in metrics for metric, value in values.items()},
        "penalty": _mean([line["lbe_loss"] / line["task_loss"] for line in history if line["task_loss"]]),
        "task_loss": history[-1]["task_loss"] if history else math.nan,
        "entropy": history[-1].get("entropy_mean", math.nan) if history else math.nan,
        "seconds": result["seconds"],
        "examples_per_second": result["examples_per_second"],
        "peak_memory_mib": result["peak_memory_mib"],
        "device": result["environment"]["device"],
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
