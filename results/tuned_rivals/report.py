"""Tables (Markdown, printed) of the runs that `study.py` has finished: PROTOCOL.md, 1 and 2.

    python results/tuned_rivals/report.py

A run has trained if its accuracy over the last 100 steps is above 0.95. Parts of the protocol with missing runs are
listed and left out.
"""

import sys
from pathlib import Path

import pandas as pd
from scipy import stats

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import choice  # noqa: E402
from inference import count, holm, interval, mcnemar, show, student  # noqa: E402
from outcomes import censored, median_in_words, step_in_words  # noqa: E402


def describe(setting: pd.Series) -> str:
    """The setting in words."""
    words = f"learning rate {setting['learning_rate']:g}"
    if setting["rival"] == "none":
        words += f", warm-up {setting['warmup_steps']}, clipping {setting['max_grad_norm']:g}"
    if setting["rival"] == "LBE":
        words += f", alpha {setting['alpha']:g}, beta {setting['beta']:g}"
    return words


def choices(runs: pd.DataFrame) -> pd.DataFrame:
    """The three best settings of each rival."""
    best = choice.ranking(runs).groupby("rival", sort=False).head(3).copy()
    best["setting"] = best.apply(describe, axis="columns")
    best["trained"] = [f"{row.trained} of {row.seeds}" for row in best.itertuples()]
    best["median of the steps to 0.95"] = best["step"].map(step_in_words)
    best["mean accuracy"] = best["accuracy"].map("{:.3f}".format)
    shown = ["rival", "setting", "trained", "median of the steps to 0.95", "mean accuracy"]
    return best.sort_values("rival", kind="stable")[shown].set_index("rival")


def judged(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the chosen settings on the fresh seeds; empty if one of them is missing."""
    settings = choice.chosen(runs)[["rival", *choice.SETTING]]
    fresh = runs[runs["seed"].isin(choice.FRESH_SEEDS)].merge(settings)
    complete = len(fresh) == runs["rival"].nunique() * len(choice.FRESH_SEEDS)
    return fresh if complete else fresh.iloc[:0]


def judgement(fresh: pd.DataFrame) -> pd.DataFrame:
    table = {}
    for rival, own in fresh.groupby("rival"):
        table[rival] = {
            "setting": describe(own.iloc[0]),
            "trained": f"{count(own['trained'])} ({interval(own['trained'])})",
            "median of the steps to 0.95": median_in_words(own["step"]),
        }
    return pd.DataFrame(table).T.rename_axis("rival")


def comparisons(fresh: pd.DataFrame) -> pd.DataFrame:
    """LBE against each rival: McNemar's test of the trained runs, log-rank test of the steps, Holm's correction."""
    own = fresh[fresh["rival"] == "LBE"]
    table = {}
    for rival, other in fresh[fresh["rival"] != "LBE"].groupby("rival"):
        pairs = own.merge(other, on="seed", suffixes=("", "_other"))
        log_rank = stats.logrank(censored(own["step"]), censored(other["step"])).pvalue
        table[rival] = {"McNemar": mcnemar(pairs["trained"], pairs["trained_other"]), "log-rank": log_rank}
    p_values = pd.DataFrame(table).T.rename_axis("LBE against")
    return p_values.apply(lambda p: [f"{one:.2g} ({both:.2g})" for one, both in zip(p, holm(p), strict=True)])


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the 30 cells with and without LBE, of the seeds that have all of them."""
    same = (runs["initialization"] == "default") & (runs["alpha"] == 0.5) & runs["beta"].isin([0.0, 2.0])
    own = runs[same & runs["seed"].isin(choice.FIRST_SEEDS)]
    return own[own.groupby("seed")["run"].transform("size") == 2 * 30]


def robustness(own: pd.DataFrame) -> None:
    shares = own.groupby(["seed", "rival"])["trained"].mean().unstack()[["none", "LBE"]]
    difference = shares["LBE"] - shares["none"]
    show("Share of the 30 settings that train", shares.assign(difference=difference).map("{:.2f}".format))
    if len(difference) > 1:
        mean, low, high = student(difference)
        print(f"\nMean difference {mean:.2f}, Student's interval {low:.2f} to {high:.2f}.")
    by_rate = pd.DataFrame(
        {
            rate: {
                f"{method}, {name}": describe(same[same["rival"] == method])
                for method in ("none", "LBE")
                for name, describe in {"trained": trained, "accuracy of the others": others}.items()
            }
            for rate, same in own.groupby("learning_rate")
        }
    )
    show("By learning rate, over warm-up, clipping and seeds", by_rate.T.rename_axis("learning rate"))


def speed(own: pd.DataFrame) -> pd.DataFrame:
    """Medians of the steps to 0.95 by learning rate, and in how many pairs of the same cell and seed LBE is slower."""
    steps = own.pivot(index=["learning_rate", "warmup_steps", "max_grad_norm", "seed"], columns="rival", values="step")
    table = {
        rate: {
            "none": step_in_words(pairs["none"].median()),
            "LBE": step_in_words(pairs["LBE"].median()),
            "LBE slower": count(pairs["LBE"] > pairs["none"]),
            "LBE faster": count(pairs["LBE"] < pairs["none"]),
        }
        for rate, pairs in steps.groupby("learning_rate")
    }
    return pd.DataFrame(table).T.rename_axis("learning rate")


def speed_by_setting(runs: pd.DataFrame) -> pd.DataFrame:
    """In how many pairs of the same rate, 5e-4 or less, and seed each alpha and beta is slower, on seeds 0 to 2."""
    plain = runs[(runs["warmup_steps"] == 0) & (runs["max_grad_norm"] == 1) & (runs["learning_rate"] <= 5e-4)]
    plain = plain[plain["seed"].isin(choice.FIRST_SEEDS)].set_index(["learning_rate", "seed"])
    none = plain.loc[plain["rival"] == "none", "step"]
    table = {}
    for (alpha, beta), own in plain[plain["rival"] == "LBE"].groupby(["alpha", "beta"]):
        steps = none[own.index]
        counts = {"LBE slower": count(own["step"] > steps), "LBE faster": count(own["step"] < steps)}
        table[f"{alpha:g}, {beta:g}"] = counts
    return pd.DataFrame(table).T.rename_axis("alpha, beta")


def trained(runs: pd.DataFrame) -> str:
    return count(runs["trained"])


def others(runs: pd.DataFrame) -> str:
    """Median and range of the accuracies of the runs that have not trained."""
    accuracy = runs.loc[~runs["trained"], "accuracy"]
    return f"{accuracy.median():.3f} ({accuracy.min():.3f} to {accuracy.max():.3f})" if len(accuracy) else ""


def main() -> None:
    runs = choice.rivals(pd.read_csv(HERE / "runs.csv"))
    print(f"{len(runs)} runs")
    show("The choice, on seeds 0 to 4: the three best settings of each", choices(runs))
    fresh = judged(runs)
    if fresh.empty:
        print("\nThe judgement on seeds 100 to 114 is not complete.")
    else:
        show("The judgement, on seeds 100 to 114 (95% intervals)", judgement(fresh))
        show("p-values (with Holm's correction over the four)", comparisons(fresh))
    table = cells(runs)
    if table.empty:
        print("\nNo seed has all 30 settings without LBE and with it.")
    else:
        robustness(table)
        show("Median of the steps to 0.95 at the same learning rate, with the same warm-up and clipping", speed(table))
        show(
            "The same by alpha and beta, at 5e-4 or less, without warm-up, with a clipping of 1",
            speed_by_setting(runs),
        )


if __name__ == "__main__":
    main()
