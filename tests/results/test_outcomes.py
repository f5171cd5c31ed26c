"""The outcome of runs, against hand calculations."""

import numpy as np
import pandas as pd
import pytest
from programs import program

outcomes = program("results/outcomes.py")


def test_a_run_has_trained_by_its_last_100_steps() -> None:
    learned, lost = [0.5] * 10 + [0.97] * 10, [0.5] * 10 + [0.97] * 6 + [0.9] * 4
    lines = pd.concat(
        pd.DataFrame({"run": name, "seed": 0, "step": np.arange(1, 21) * 20, "accuracy": accuracy})
        for name, accuracy in {"learned": learned, "lost": lost, "never": [0.5] * 20}.items()
    )
    runs = outcomes.outcomes(lines, ["seed"]).set_index("run")
    assert runs["trained"].to_dict() == {"learned": True, "lost": False, "never": False}
    assert runs["step"].to_dict() == {"learned": 220, "lost": 220, "never": np.inf}
    assert runs.loc["lost", "accuracy"] == pytest.approx((0.97 + 4 * 0.9) / 5)


def test_an_accuracy_of_exactly_the_threshold_is_not_above_it() -> None:
    correct = [1213, 1218, 1217, 1216, 1216]  # of 1280 each, 6080 of 6400 together
    logged = [round(count / 1280, 4) for count in correct]
    assert sum(logged) / 5 > 0.95
    runs = outcomes.outcomes(pd.DataFrame({"run": "a", "seed": 0, "step": [20] * 5, "accuracy": logged}), ["seed"])
    assert not runs["trained"].item()


def test_the_median_is_kaplan_and_meiers() -> None:
    assert outcomes.median_step(pd.Series([60.0, 80, 100, np.inf, np.inf]))[0] == 100
    assert outcomes.median_step(pd.Series([60.0, 80, np.inf, np.inf, np.inf]))[0] == np.inf
    assert outcomes.median_in_words(pd.Series([80.0] * 15)) == "80 (80 to 80)"
    assert outcomes.median_in_words(pd.Series([np.inf] * 15)) == "not reached (not reached to not reached)"
