"""Which runs of each LBE method are compared with which runs of the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from .selection import BASELINE, METHOD_BY, choose_settings

FIXED_IN_ADVANCE = {"alpha": 0.5, "beta": 0.01}
"""The middle of the paper's sweep: not chosen by results, and therefore no advantage over the baseline."""


@dataclass(frozen=True)
class Contest:
    """Runs of an LBE method with one alpha and beta, and the runs of the baseline that they are compared with."""

    runs: pd.DataFrame
    baseline: pd.DataFrame
    setting: str
    """How alpha and beta were chosen."""
    same_rates: bool
    """Whether both methods are compared at all learning rates; otherwise, each is compared at its own best one."""

    @property
    def name(self) -> str:
        """Name of the contest in the report."""
        return f"{self.setting}, same learning rates" if self.same_rates else self.setting

    def differences(self, split: str) -> pd.Series:
        """LBE minus baseline in the score of `split`, one value per seed.

        At the same learning rates it is the mean over the rates of `pairs`. Only seeds are a random sample, so each
        seed counts once, at however many rates it was run.
        """
        pairs = self.pairs
        differences = pairs[split] - pairs[f"{split}_baseline"]
        return differences.groupby(pairs["seed"]).agg(lambda of_seed: of_seed.mean(skipna=False))

    @property
    def pairs(self) -> pd.DataFrame:
        """The pairs of runs, one in each row, with the columns of the baseline as in `test_baseline`.

        All seeds have pairs at the same learning rates: the rates of one seed, chosen to keep the most pairs. Seeds
        that lack one of these rates are left out.
        """
        pairs = self._all_pairs
        rates_of = pairs.groupby("seed")["learning_rate"].agg(frozenset)
        seeds_by_rates = {rates: rates_of.index[[rates <= own for own in rates_of]] for rates in rates_of}
        rates, seeds = max(seeds_by_rates.items(), key=lambda kept: len(kept[0]) * len(kept[1]), default=((), ()))
        return pairs[pairs["learning_rate"].isin(list(rates)) & pairs["seed"].isin(seeds)]

    @property
    def left_out(self) -> int:
        """Number of pairs left out, because the seeds were not all run at the same learning rates."""
        return len(self._all_pairs) - len(self.pairs)

    @property
    def _all_pairs(self) -> pd.DataFrame:
        keys = ["seed", "learning_rate"] if self.same_rates else ["seed"]
        return self.runs.merge(self.baseline, on=keys, suffixes=("", "_baseline"))


def find_contests(results: pd.DataFrame) -> Iterator[Contest]:
    """Each LBE method at the setting that validation chose and, if there were several, at the one fixed in advance.

    Each of them is compared with the baseline twice: with each method at its own best learning rate, and at the same
    learning rates.
    """
    chosen = choose_settings(results)
    fixed = choose_settings(results[(results[list(FIXED_IN_ADVANCE)] == list(FIXED_IN_ADVANCE.values())).all(axis=1)])
    for (*compared, method), best in chosen[chosen["method"] != BASELINE].groupby(METHOD_BY, sort=False):
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
    return results[(results[METHOD_BY] == of_method).all(axis=1)]
