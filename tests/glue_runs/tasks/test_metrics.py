import math

import numpy as np
import pytest
from transformers import EvalPrediction

from glue_runs.tasks.glue import TASKS
from glue_runs.tasks.metrics import GlueMetric, compute_metrics_for

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
REFERENCES = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
PREDICTIONS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
MATTHEWS = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("rte", {"accuracy": 0.7}),
        ("mrpc", {"accuracy": 0.7, "f1": 6 / 9, "combined_score": (0.7 + 6 / 9) / 2}),
        ("qqp", {"accuracy": 0.7, "f1": 6 / 9, "combined_score": (0.7 + 6 / 9) / 2}),
        *((task, {"accuracy": 0.7}) for task in ("sst2", "mnli", "qnli", "wnli")),
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


def test_regression() -> None:
    # Deviations from the means: -1, 0, 1 and -2, -1, 3; their ranks are the same.
    scores, logits = np.array([0.0, 1.0, 5.0]), np.array([[1.0], [2.0], [3.0]])
    pearson = (2 + 0 + 3) / math.sqrt(2 * 14)
    assert compute_metrics_for(TASKS["stsb"])(EvalPrediction(logits, scores)) == pytest.approx(
        {"pearson": pearson, "spearmanr": 1.0, "combined_score": (pearson + 1) / 2}
    )


def test_one_class_predicted_is_a_correlation_of_zero() -> None:
    computed = GlueMetric(TASKS["cola"]).compute(predictions=[1] * 10, references=REFERENCES)
    assert computed == {"matthews_correlation": 0.0}
