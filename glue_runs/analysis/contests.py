"""What is compared with what: the runs with which each method with LBE meets the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from ..finetune.record import COMPARE_BY
from .selection import BASELINE, choose_settings

FIXED_IN_ADVANCE = {"alpha": 0.5, "beta": 0.01}
"""The middle of the paper's sweep: no choice, therefore no advantage over the baseline's single setting."""

_OF_METHOD = [*COMPARE_BY, "method"]


@dataclass(frozen=True)
class Contest:
    """Runs of a method with LBE, of one alpha and beta, and the runs of the baseline that they are compared with."""

    runs: pd.DataFrame
    baseline: pd.DataFrame
    setting: str
    """How alpha and beta were chosen."""
    same_rates: bool
    """Whether both are compared at all learning rates, and not each at its own best one."""

    @property
    def name(self) -> str:
        """As the report has it."""
        return f"{self.setting}, same learning rates" if self.same_rates else self.setting

    def differences(self, split: str) -> pd.Series:
        """LBE minus baseline in the score of `split`, one value a seed.

        At the same learning rates it is the mean over the rates, of the seeds that both have at every rate: only
        seeds are a sample of something, so that a seed counts once however many rates it was run at.
        """
        pairs = self.pairs
        differences = pairs[split] - pairs[f"{split}_baseline"]
        return differences.groupby(pairs["seed"]).agg(lambda of_seed: of_seed.mean(skipna=False))

    @property
    def pairs(self) -> pd.DataFrame:
        """The pairs of runs, a row each, with the columns of the baseline as in `test_baseline`."""
        keys = ["seed", "learning_rate"] if self.same_rates else ["seed"]
        pairs = self.runs.merge(self.baseline, on=keys, suffixes=("", "_baseline"))
        complete = pairs.groupby("seed")["name"].transform("size") == pairs["learning_rate"].nunique()
        return pairs[complete]


def find_contests(results: pd.DataFrame) -> Iterator[Contest]:
    """Each method with LBE at the setting that validation chose and, if that was a choice, at the fixed one.

    Both meet the baseline with each at its own best learning rate, and at the same learning rates.
    """
    chosen = choose_settings(results)
    fixed = choose_settings(results[(results[list(FIXED_IN_ADVANCE)] == list(FIXED_IN_ADVANCE.values())).all(axis=1)])
    for (*compared, method), best in chosen[chosen["method"] != BASELINE].groupby(_OF_METHOD, sort=False):
        of_method, baseline = [*compared, method], [*compared, BASELINE]
        at_any_rate = _select(results, of_method)
        count = len(at_any_rate[["alpha", "beta"]].drop_duplicates())
        entries = {f"best of {count} settings" if count > 1 else "one setting": best}
        if count > 1:
            entries["fixed in advance"] = _select(fixed, of_method)
        for setting, runs in entries.items():
            if runs.empty:
                continue
            yield Contest(runs, _select(chosen, baseline), setting, same_rates=False)
            same_setting = (at_any_rate[["alpha", "beta"]] == runs[["alpha", "beta"]].iloc[0]).all(axis=1)
            contest = Contest(at_any_rate[same_setting], _select(results, baseline), setting, same_rates=True)
            rates = pd.concat([contest.runs, contest.baseline])["learning_rate"].nunique()
            if rates > 1 and not contest.pairs.empty:  # at a single rate it is the contest above
                yield contest


def _select(results: pd.DataFrame, of_method: list[str]) -> pd.DataFrame:
    return results[(results[_OF_METHOD] == of_method).all(axis=1)]
