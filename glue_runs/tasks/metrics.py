"""GLUE metrics, computed without a download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from .glue import Task

_METRICS: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda references, predictions: pearsonr(references, predictions).statistic,
    "spearmanr": lambda references, predictions: spearmanr(references, predictions).statistic,
}


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """The metrics of one GLUE task, as from `evaluate.load("glue", task)`, which would download a script from the Hub.

    A task with two metrics also has their mean as `combined_score`.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(config_name=task.name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        kind = Value("int64" if self.task.labels else "float32")
        return evaluate.MetricInfo(
            description="GLUE metrics",
            citation="",
            inputs_description="class indices, or scores of a regression",
            features=Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        values = {name: float(_METRICS[name](references, predictions)) for name in self.task.metrics}
        return values if len(values) == 1 else {**values, "combined_score": sum(values.values()) / len(values)}


def compute_metrics_for(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` of a `Trainer` whose model has one logit per class, or a single one for a regression."""
    metric = GlueMetric(task)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = np.asarray(prediction.predictions)
        answers = np.argmax(logits, axis=-1) if task.labels else logits.squeeze(-1)
        return metric.compute(predictions=answers, references=prediction.label_ids) or {}

    return compute_metrics
