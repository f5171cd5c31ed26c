"""Chooses the best setting and the best run: by validation scores, never by test scores."""

from __future__ import annotations

import pandas as pd

from .comparison import DECIMALS
from .shapes import COMPARE_BY, HYPERPARAMETERS

BASELINE = "baseline"

METHOD_BY = [*COMPARE_BY, "method"]
"""Columns that the runs of a method share, for which one setting is chosen."""

SETTING_BY = [*METHOD_BY, *HYPERPARAMETERS]
"""Columns that the runs of a setting share, which differ only in their seed."""

_KEPT_ONE_OF = {"best": METHOD_BY, "settings": SETTING_BY}


def choose_settings(results: pd.DataFrame) -> pd.DataFrame:
    """The runs of the setting with the best validation score, for each method in each group of comparable runs.

    The best setting has the highest mean of `validation` over seeds, among the settings with the most finished seeds;
    of ties, the one that comes first in the grid. A setting with a run that diverged is chosen only if every setting
    has one; a setting with a score that is NaN is never chosen. Test scores play no part.
    """
    if results.empty:
        return results
    summary = results.groupby(SETTING_BY, dropna=False, sort=False).agg(
        seeds=("validation", "size"),
        mean=("validation", lambda scores: round(scores.mean(skipna=False), DECIMALS)),
        converged=("diverged", lambda diverged: not diverged.any()),
    )
    best = ["converged", "seeds", "mean"]
    summary = summary.reset_index().dropna(subset="mean").sort_values(best, ascending=False, kind="stable")
    chosen = summary.drop_duplicates(METHOD_BY)[SETTING_BY]
    return results.merge(chosen, on=SETTING_BY)


def best_run(results: pd.DataFrame) -> str | None:
    """Name of the run that represents a group of comparable runs: the best seed of the chosen setting.

    With several LBE methods, the one with the best mean is taken. None if no setting can be chosen, or if all runs of
    the chosen settings diverged.
    """
    chosen = choose_settings(results)
    chosen = chosen[~chosen["diverged"].astype(bool)]
    if chosen.empty:
        return None
    regularized = chosen[chosen["method"] != BASELINE]
    chosen = chosen if regularized.empty else regularized
    means = chosen.groupby("method", sort=False)["validation"].mean().round(DECIMALS)
    return _best_seeds(chosen[chosen["method"] == means.idxmax()], ["method"])[0]


def runs_to_keep(results: pd.DataFrame, keep_models: str) -> set[str]:
    """Names of the runs whose model is kept.

    Args:
        results: the finished runs.
        keep_models: "none"; "best": among runs that differ only in learning rate, alpha, beta and seed, the one with
            the best validation score so far; "settings": the same among runs that differ only in the seed; "all".
    """
    if keep_models in _KEPT_ONE_OF:
        return set(_best_seeds(results, _KEPT_ONE_OF[keep_models]))
    return set(results["name"]) if keep_models == "all" else set()


def _best_seeds(results: pd.DataFrame, group: list[str]) -> list[str]:
    """Name of the run with the best validation score in each group, one that diverged last; of ties, the last one."""
    scores = results["validation"].mask(results["diverged"].astype(bool))
    ordered = results.assign(validation=scores).sort_values("validation", kind="stable", na_position="first")
    return [str(name) for name in ordered.drop_duplicates(group, keep="last")["name"]]
