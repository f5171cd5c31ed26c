import math

import numpy as np
import pytest
from transformers import EvalPrediction

from glue_runs.metrics import GlueMetric, compute_metrics_for
from glue_runs.tasks import TASKS

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
REFERENCES = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
PREDICTIONS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
MATTHEWS = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("rte", {"accuracy": 0.7}),
        ("mrpc", {"accuracy": 0.7, "f1": 2 * 3 / (2 * 3 + 1 + 2)}),
        ("cola", {"matthews_correlation": MATTHEWS}),
    ],
)
def test_known_values(task: str, expected: dict[str, float]) -> None:
    computed = GlueMetric(TASKS[task]).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert computed == pytest.approx(expected)


def test_from_logits() -> None:
    logits = np.array([[0.1, 0.9] if prediction else [2.0, -1.0] for prediction in PREDICTIONS])
    compute = compute_metrics_for(TASKS["rte"])
    for _ in range(2):  # it is called at every evaluation
        assert compute(EvalPrediction(logits, np.array(REFERENCES))) == {"accuracy": pytest.approx(0.7)}


def test_one_class_predicted_is_a_correlation_of_zero() -> None:
    computed = GlueMetric(TASKS["cola"]).compute(predictions=[1] * 10, references=REFERENCES)
    assert computed == {"matthews_correlation": 0.0}
