"""What became of the runs of 400 steps on the synthetic task: PROTOCOL.md, "common to the synthetic task"."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

ACCURACY, LAST_STEP = 0.95, 400
TUNED_RIVALS = Path(__file__).parent / "tuned_rivals" / "runs.csv"


def outcomes(lines: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """A row for each run, with its settings, `accuracy` over the last 100 steps, `step`, and whether it `trained`.

    `step` is the end of the first 20 steps with an accuracy above 0.95; infinite if there is none.

    Args:
        lines: a row for every 20 steps of each run.
        settings: the columns that are constant in a run.
    """
    runs = lines.groupby(["run", *settings], as_index=False)["accuracy"].agg(lambda values: values.iloc[-5:].mean())
    above = lines["step"].where(lines["accuracy"] > ACCURACY).groupby(lines["run"]).min()
    runs["step"] = runs["run"].map(above).fillna(np.inf)
    return runs.assign(trained=has_trained(runs["accuracy"]))


def has_trained(accuracy: pd.Series) -> pd.Series:
    """Whether each accuracy, a mean of logged values, is above 0.95.

    They are logged with four decimals, so that the mean of an accuracy of exactly 0.95 may come out above it.
    """
    return accuracy.round(4) > ACCURACY


def with_lbe(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of the judgement of LBE, with alpha 0.5 and beta 2 at 1e-3, which other studies compare with.

    Args:
        lines: of all runs in the file `TUNED_RIVALS`.
    """
    setting = {"initialization": "default", "learning_rate": 1e-3, "warmup_steps": 0, "max_grad_norm": 1.0}
    setting |= {"alpha": 0.5, "beta": 2.0}
    return lines[(lines[list(setting)] == pd.Series(setting)).all(axis="columns") & (lines["seed"] >= 100)]


def censored(steps: pd.Series) -> stats.CensoredData:
    """Steps to 0.95, censored at the last step where it was not reached."""
    return stats.CensoredData.right_censored(steps.replace(np.inf, LAST_STEP), np.isinf(steps))


def median_step(steps: pd.Series) -> tuple[float, float, float]:
    """Kaplan and Meier's median with its 95% interval (log-log transformed); infinite where it is not reached."""
    curve = stats.ecdf(censored(steps)).sf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the curve is 1 or 0 it has no interval
        bounds = curve.confidence_interval(0.95, method="log-log")

    def first_at_half(probabilities: np.ndarray) -> float:
        below = np.flatnonzero(np.where(np.isnan(probabilities), curve.probabilities, probabilities) <= 0.5)
        return float(curve.quantiles[below[0]]) if len(below) else np.inf

    return tuple(first_at_half(each.probabilities) for each in (curve, bounds.low, bounds.high))


def median_in_words(steps: pd.Series) -> str:
    median, low, high = map(step_in_words, median_step(steps))
    return f"{median} ({low} to {high})"


def step_in_words(step: float) -> str:
    return f"{step:.0f}" if np.isfinite(step) else "not reached"
