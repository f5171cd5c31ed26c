"""Which setting, and which run, is the best: always by validation, never by test."""

from __future__ import annotations

import pandas as pd

from ..finetune.record import COMPARE_BY, HYPERPARAMETERS

BASELINE = "baseline"

_KEPT_ONE_OF = {"best": [*COMPARE_BY, "method"], "settings": [*COMPARE_BY, "method", *HYPERPARAMETERS]}


def choose_settings(results: pd.DataFrame) -> pd.DataFrame:
    """The runs of the setting that is best on the validation examples, for each method of what can be compared.

    Best is the mean of `validation` over seeds, among the settings with the most seeds done; of equals the one
    that the grid has first. A setting with a score that is NaN is never chosen. Test scores have no part in it.
    """
    if results.empty:
        return results
    group = [*COMPARE_BY, "method"]
    settings = results.groupby([*group, *HYPERPARAMETERS], dropna=False, sort=False)["validation"]
    summary = settings.agg(seeds="size", mean=lambda scores: scores.mean(skipna=False)).reset_index()
    summary = summary.dropna(subset="mean").sort_values(["seeds", "mean"], ascending=False, kind="stable")
    chosen = summary.drop_duplicates(group)[[*group, *HYPERPARAMETERS]]
    return results.merge(chosen, on=[*group, *HYPERPARAMETERS])


def best_run(results: pd.DataFrame) -> str | None:
    """Name of the run that stands for runs that can be compared: the best seed of the setting that is chosen.

    Of several methods with LBE it is that with the best mean. None if no setting can be chosen.
    """
    chosen = choose_settings(results)
    if chosen.empty:
        return None
    regularized = chosen[chosen["method"] != BASELINE]
    chosen = chosen if regularized.empty else regularized
    means = chosen.groupby("method", sort=False)["validation"].mean()
    return _best_seeds(chosen[chosen["method"] == means.idxmax()], ["method"])[0]


def runs_to_keep(results: pd.DataFrame, keep_models: str) -> set[str]:
    """Names of the runs whose model is kept.

    Args:
        results: the runs that are done.
        keep_models: "none"; "best": of those that differ only in learning rate, alpha, beta and seed the one with
            the best validation score, which stays the best until a better one is done; "settings": of those that
            differ only in the seed; "all".
    """
    if keep_models in _KEPT_ONE_OF:
        return set(_best_seeds(results, _KEPT_ONE_OF[keep_models]))
    return set(results["name"]) if keep_models == "all" else set()


def _best_seeds(results: pd.DataFrame, group: list[str]) -> list[str]:
    """Name of the run with the best validation score of each group; of equals the last one."""
    ordered = results.sort_values("validation", kind="stable", na_position="first")
    return [str(name) for name in ordered.drop_duplicates(group, keep="last")["name"]]
