"""The results of a grid as one table, with one row per run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..tasks.glue import get_task
from .shapes import DESCRIBED_BY


def tabulate(records: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """The records, given by name of the run, as a table in the same order.

    The columns are the description of the run; `validation`, `test` and, for MNLI, `test_mismatched`, the scores that
    GLUE ranks by; each metric and loss of each split, as in `test_loss`; `penalty`, relative to the task loss and
    averaged over training; the last logged `task_loss` and `entropy` (mean over layers, in nats); the time and memory
    that the run took; and whether it `diverged`.
    """
    rows = [_row(name, record) for name, record in records.items()]
    table = pd.DataFrame(rows, columns=None if rows else ["name", *DESCRIBED_BY, "validation", "diverged"])
    return table.astype({"alpha": float})  # of the baseline, NaN and not None


def _row(name: str, record: dict[str, Any]) -> dict[str, Any]:
    score = get_task(record["task"]).main_metric
    history = record["history"]
    metrics = record["metrics"].items()
    return {
        "name": name,
        **{key: record[key] for key in DESCRIBED_BY},
        **{split: values[score] for split, values in metrics},
        **{f"{split}_{metric}": value for split, values in metrics for metric, value in values.items()},
        "penalty": _mean([line["lbe_loss"] / line["task_loss"] for line in history if line["task_loss"]]),
        "task_loss": history[-1]["task_loss"] if history else math.nan,
        "entropy": history[-1].get("entropy_mean", math.nan) if history else math.nan,
        "seconds": record["seconds"],
        "examples_per_second": record["examples_per_second"],
        "peak_memory_mib": record["peak_memory_mib"],
        "device": record["environment"]["device"],
        "diverged": record["diverged"],
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
