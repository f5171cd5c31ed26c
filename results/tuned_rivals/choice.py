"""The choice of a setting for each rival: PROTOCOL.md, 1."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from outcomes import outcomes

SETTING = ["initialization", "learning_rate", "warmup_steps", "max_grad_norm", "alpha", "beta"]
CHOICE_SEEDS, FIRST_SEEDS, FRESH_SEEDS = range(5), range(3), range(100, 115)


def rivals(lines: pd.DataFrame) -> pd.DataFrame:
    """The outcome of each run, with its `rival`."""
    runs = outcomes(lines, [*SETTING, "seed"])
    return runs.assign(rival=np.where(runs["beta"] > 0, "LBE", runs["initialization"].replace("default", "none")))


def candidates(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings that take part in the choice, on the seeds of the choice.

    For LBE these are the settings without warm-up and with a clipping norm of 1; the others measure robustness.
    """
    plain = (runs["warmup_steps"] == 0) & (runs["max_grad_norm"] == 1)
    return runs[runs["seed"].isin(CHOICE_SEEDS) & ((runs["rival"] != "LBE") | plain)]


def ranking(runs: pd.DataFrame) -> pd.DataFrame:
    """The candidates of each rival, best first: by trained runs, median of the steps, mean accuracy."""
    settings = candidates(runs).groupby(["rival", *SETTING], as_index=False)
    table = settings.agg(
        trained=("trained", "sum"), step=("step", "median"), accuracy=("accuracy", "mean"), seeds=("seed", "nunique")
    )
    return table.sort_values(["trained", "step", "accuracy"], ascending=[False, True, False])


def chosen(runs: pd.DataFrame) -> pd.DataFrame:
    """The best setting of each rival, among those with all five seeds."""
    table = ranking(runs)
    return table[table["seeds"] == len(CHOICE_SEEDS)].groupby("rival", sort=False).head(1)


def undecided(runs: pd.DataFrame) -> Iterator[tuple[pd.Series, int]]:
    """Setting and seed of the next runs that could still change the choice.

    The most promising setting of each rival is completed first, for comparison. Another gets its next seed only if it
    would rank at least as high even if all its missing runs trained at step 0.
    """
    table = ranking(runs)
    table["failed"] = table["seeds"] - table["trained"]
    own = candidates(runs)
    for _, settings in table.groupby("rival", sort=False):
        complete = settings[settings["seeds"] == len(CHOICE_SEEDS)]
        incomplete = settings[settings["seeds"] < len(CHOICE_SEEDS)]
        for _, setting in incomplete.sort_values(["failed", "step"]).iterrows():
            same = own[(own[SETTING] == setting[SETTING]).all(axis="columns")]
            missing = [seed for seed in CHOICE_SEEDS if seed not in set(same["seed"])]
            if complete.empty:
                yield from ((setting[SETTING], seed) for seed in missing)
                break
            best = complete.iloc[0]
            step = np.median([*same["step"], *[0] * len(missing)])
            if (setting["failed"], step) <= (best["failed"], best["step"]):
                yield setting[SETTING], missing[0]
