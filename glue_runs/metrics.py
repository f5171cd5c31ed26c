"""GLUE metrics, computed without a download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from .tasks import Task

_METRICS: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
}


class GlueMetric(evaluate.Metric):
    """The metrics of one GLUE task; what `evaluate.load("glue", task)` gives, which fetches a script from the Hub."""

    def __init__(self, task: Task) -> None:
        self.task = task
        super().__init__(config_name=task.name, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="GLUE metrics",
            citation="",
            inputs_description="class indices",
            features=Features({"predictions": Value("int64"), "references": Value("int64")}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {name: float(_METRICS[name](references, predictions)) for name in self.task.metrics}


def compute_metrics_for(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` of a `Trainer` whose model has one logit a class."""
    metric = GlueMetric(task)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        classes = np.argmax(prediction.predictions, axis=-1)
        return metric.compute(predictions=classes, references=prediction.label_ids) or {}

    return compute_metrics
