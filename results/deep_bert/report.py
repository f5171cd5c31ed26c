"""Tables (Markdown, printed) and figures of the runs that `study.py` has finished.

    python results/deep_bert/report.py             # --tables leaves the figures as they are

A run has trained if its accuracy over the last 100 steps is above 0.95; it has trained for a while (post hoc) if that
holds for any 20 logged steps. It has collapsed if the batch entropy of a layer is below 0.001 nats in most of the last
100 steps.
"""

import argparse
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lbe_hf.figures import draw_entropy_by_step

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from inference import count, holm, interval, mcnemar, show, sign_test  # noqa: E402
from outcomes import outcomes  # noqa: E402

COLLAPSED_ENTROPY = 1e-3  # nats
SETTING = [
    "model_type",
    "data",
    "depth",
    "learning_rate",
    "warmup_steps",
    "decay",
    "beta",
    "alpha",
    "activations",
    "seed",
]
OUTCOMES = {"trained": "trained", "for a while (post hoc)": "learned", "collapsed": "collapsed"}
METHODS = {"none": (0, False), "LBE": (0, True), "warm-up": (40, False), "warm-up + LBE": (40, True)}
DEPTHS, RATES = (12, 24, 48, 96), (3e-4, 1e-3, 2e-3)
CHOSEN = {"alpha": 0.5, "beta": 2.0}
CHOSEN_NAME = "LBE, alpha 0.5, beta 2"


def load() -> tuple[pd.DataFrame, pd.DataFrame]:
    """One table with a row per 20 steps of each run, and one with a row per run, over its last 100 steps."""
    steps = pd.read_csv(HERE / "runs.csv")
    steps = steps.copy().assign(lowest_entropy=steps.filter(like="entropy/").min(axis="columns"))
    last = steps[steps["step"] > 300].groupby("run")
    runs = outcomes(steps, SETTING).rename(columns={"step": "steps_to_learn"}).set_index("run")
    runs = runs.join(last[["test_accuracy", "seconds_per_step"]].mean())
    runs["lowest_entropy"] = last["lowest_entropy"].median()  # a spike does not end a collapse
    runs["learned"] = np.isfinite(runs["steps_to_learn"])
    runs["collapsed"] = runs["lowest_entropy"] < COLLAPSED_ENTROPY
    return steps, runs


def choose(table: pd.DataFrame, method: str, **setting: object) -> pd.DataFrame:
    """The runs of a method, by default with the settings of the main comparison."""
    warmup_steps, penalty = METHODS[method]
    wanted: dict[str, object] = {"model_type": "bert", "data": "sentences", "depth": 48, "learning_rate": 1e-3}
    wanted |= {"warmup_steps": warmup_steps, "decay": "none"}
    if penalty:
        wanted |= {"beta": 0.5, "alpha": 0.7, "activations": "hidden_states"}
    else:
        wanted |= {"beta": 0.0}
        setting = {name: value for name, value in setting.items() if name not in ("beta", "alpha", "activations")}
    for name, value in (wanted | setting).items():
        table = table[table[name] == value]
    return table


def describe(runs: pd.DataFrame) -> dict[str, str]:
    """How many runs trained, with the exact 95% interval of their share, and how many collapsed."""
    if not len(runs):
        return {"trained": "not run"}
    ending = {
        "trained": count(runs["trained"]),
        "95% interval": interval(runs["trained"]),
        "for a while (post hoc)": count(runs["learned"]),
        "collapsed": count(runs["collapsed"]),
        "accuracy: median (range)": median_and_range(runs["accuracy"]),
        "lowest entropy: median": f"{runs['lowest_entropy'].median():.3f}",
    }
    if runs["test_accuracy"].notna().all():
        ending["test accuracy: median (range)"] = median_and_range(runs["test_accuracy"])
    return ending


def median_and_range(values: pd.Series, digits: int = 3) -> str:
    return f"{values.median():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})"


def share(runs: pd.DataFrame) -> str:
    return f"{int(runs['trained'].sum())}/{len(runs)} ({runs['accuracy'].median():.2f})" if len(runs) else "not run"


def all_tests(runs: pd.DataFrame) -> pd.DataFrame:
    """All tests of the page, one row each: group, comparison, outcome, p-value, and p-value with Holm's correction."""
    fresh, first = runs[runs["seed"] >= 5], runs[runs["seed"] < 5]
    pairs = [("LBE", "none"), ("LBE", "warm-up"), ("warm-up", "none"), ("warm-up + LBE", "warm-up")]
    tests = pd.concat(
        [
            *(compare(runs, one, other, f"{one} against {other}") for one, other in pairs),
            compare(runs, "LBE", "none", "LBE against none, linear decay", decay="linear"),
            *(
                compare(fresh, "LBE", other, f"{CHOSEN_NAME}, against {other}", **CHOSEN).assign(group="fresh seeds")
                for other in ("none", "warm-up")
            ),
            pd.DataFrame([{"group": "border", "p": border_test(first)}]),
        ],
        ignore_index=True,
    )
    return tests.fillna({"group": "main"}).assign(holm=holm(tests["p"]))


def compare(runs: pd.DataFrame, one: str, other: str, comparison: str, **setting: object) -> pd.DataFrame:
    """McNemar's test of two methods, for each outcome."""
    tests = []
    for outcome, column in OUTCOMES.items():
        samples = {method: choose(runs, method, **setting).set_index("seed")[column] for method in (one, other)}
        pairs = pd.DataFrame(samples).dropna().astype(bool)
        tests.append({"comparison": comparison, "outcome": outcome, "p": mcnemar(pairs[one], pairs[other])})
    return pd.DataFrame(tests)


def border_test(first: pd.DataFrame) -> float:
    """Sign test over the seeds. The cells of a seed share weights and batches, so they count as one observation."""
    gained = border_pairs(first).astype(int).diff(axis="columns")["LBE"].groupby("seed").sum()
    return sign_test(int((gained > 0).sum()), int((gained < 0).sum()))


def border_pairs(first: pd.DataFrame, outcome: str = "trained") -> pd.DataFrame:
    """Whether the outcome holds with and without LBE, for each depth, learning rate and seed."""
    cells = [{"depth": depth, "learning_rate": rate} for depth, rate in product(DEPTHS, RATES)]
    key = ["depth", "learning_rate", "seed"]
    methods = {
        method: pd.concat(choose(first, method, **cell) for cell in cells).set_index(key)[outcome]
        for method in ("none", "LBE")
    }
    return pd.DataFrame(methods).dropna().astype(bool)


def show_endings(title: str, runs: pd.DataFrame, methods: Iterable[str], **setting: object) -> None:
    table = {method: describe(choose(runs, method, **setting)) for method in methods}
    if all(ending == {"trained": "not run"} for ending in table.values()):
        print(f"\n{title}: not run.")
        return
    show(title, pd.DataFrame(table).T.rename_axis("method"))


def show_tests(title: str, tests: pd.DataFrame, group: str) -> None:
    own = tests[tests["group"] == group]
    cells = own.assign(cell=[f"{p:.2g} ({corrected:.2g})" for p, corrected in zip(own["p"], own["holm"], strict=True)])
    table = cells.pivot(index="comparison", columns="outcome", values="cell")
    show(title, table.loc[own["comparison"].unique(), list(OUTCOMES)])


def show_open_question(runs: pd.DataFrame) -> None:
    """Compare the lower learning rate without the penalty and the higher one with it."""
    first, fresh = runs[runs["seed"] < 5], runs[runs["seed"] >= 5]
    lines = {
        "none at 3e-4, seeds 0 to 4": choose(first, "none", learning_rate=3e-4),
        "LBE, alpha 0.7, beta 0.5, at 3e-4, seeds 0 to 4": choose(first, "LBE", learning_rate=3e-4),
        f"{CHOSEN_NAME}, at 1e-3, seeds 0 to 4 (on which it was chosen)": choose(first, "LBE", **CHOSEN),
        f"{CHOSEN_NAME}, at 1e-3, seeds 5 to 19": choose(fresh, "LBE", **CHOSEN),
    }
    table = {
        name: {
            "trained": count(own["trained"]),
            "95% interval": interval(own["trained"]),
            "steps to 0.95: median (range)": median_and_range(own["steps_to_learn"], digits=0),
        }
        for name, own in lines.items()
    }
    show("A lower learning rate instead", pd.DataFrame(table).T.rename_axis("48 layers"))


def show_onset(steps: pd.DataFrame) -> None:
    """Show when the runs without the penalty have their first collapsed layer."""
    own = choose(steps, "none")
    onset = own[own["lowest_entropy"] < COLLAPSED_ENTROPY].groupby("seed")["step"].min()
    print(f"\nNone: a layer collapses by step 40 in {count(onset <= 40)}, in the last run by step {onset.max()}.")


def show_border(first: pd.DataFrame, tests: pd.DataFrame) -> None:
    table = {
        depth: {
            f"{rate:g}, {method}": share(choose(first, method, depth=depth, learning_rate=rate))
            for rate, method in product(RATES, ("none", "LBE"))
        }
        for depth in DEPTHS
    }
    show("Trained by depth and learning rate, median accuracy", pd.DataFrame(table).T.rename_axis("layers"))
    trained, collapsed = border_pairs(first), border_pairs(first, "collapsed")
    gained, lost = (trained["LBE"] & ~trained["none"]).sum(), (trained["none"] & ~trained["LBE"]).sum()
    test = tests[tests["group"] == "border"].iloc[0]
    print(f"\nOf {len(trained)} pairs {gained} trained only with LBE, {lost} only without.")
    print(f"Sign test over the seeds: p = {test['p']:.2g}, with Holm's correction {test['holm']:.2g}.")
    print(f"Collapsed: {count(collapsed['none'])} without LBE, {count(collapsed['LBE'])} with it.")


def show_sensitivity(runs: pd.DataFrame) -> None:
    table = {
        alpha: {f"beta {beta}": share(choose(runs, "LBE", alpha=alpha, beta=beta)) for beta in (0.05, 0.2, 0.5, 2.0)}
        for alpha in (0.3, 0.5, 0.7, 1.0)
    }
    show("Trained by alpha and beta, 48 layers, learning rate 1e-3", pd.DataFrame(table).T.rename_axis("alpha"))
    weakest = pd.concat(choose(runs, "LBE", alpha=alpha, beta=0.05) for alpha in (0.3, 0.5, 0.7, 1.0))
    print(f"\nCollapsed at beta 0.05: {count(weakest['collapsed'])}.")


def show_chosen(runs: pd.DataFrame) -> None:
    """Show a cell of the grid in which all runs trained, on fresh seeds."""
    fresh = runs[runs["seed"] >= 5]
    table = {method: describe(choose(fresh, method)) for method in METHODS}
    table[CHOSEN_NAME] = describe(choose(fresh, "LBE", **CHOSEN))
    show("Alpha 0.5 and beta 2, on fresh seeds", pd.DataFrame(table).T.rename_axis("method"))


def show_higher_rate(first: pd.DataFrame) -> None:
    table = {
        "none": describe(choose(first, "none", learning_rate=2e-3)),
        CHOSEN_NAME: describe(choose(first, "LBE", learning_rate=2e-3, **CHOSEN)),
    }
    show("Alpha 0.5 and beta 2 at a learning rate of 2e-3", pd.DataFrame(table).T.rename_axis("method"))


def show_feed_forward(first: pd.DataFrame) -> None:
    places = {"feed-forward outputs": "feed_forward", "hidden states, the same seeds": "hidden_states"}
    endings = {name: describe(choose(first, "LBE", activations=place)) for name, place in places.items()}
    table = pd.DataFrame(endings).T.rename_axis("LBE on")
    show("Penalty on the feed-forward outputs, 48 layers, learning rate 1e-3", table)


def show_cost(runs: pd.DataFrame) -> None:
    times = pd.DataFrame(
        {name: choose(runs, name).set_index("seed")["seconds_per_step"] for name in ("none", "LBE")}
    ).dropna()
    medians, ratios = times.median(), times["LBE"] / times["none"]
    low, ratio, high = ratios.quantile([0.25, 0.5, 0.75])
    seconds = f"{medians['none']:.3f} s a step without, {medians['LBE']:.3f} with"
    print(f"\n{seconds}; median of ratios by seed {ratio:.2f} (quartiles {low:.2f} to {high:.2f})")


def show_tables(steps: pd.DataFrame, runs: pd.DataFrame) -> None:
    setting, pair, first = "48 layers, learning rate 1e-3", ("none", "LBE"), runs[runs["seed"] < 5]
    tests = all_tests(runs)
    print(f"{len(runs)} runs")
    show_open_question(runs)
    show_endings(setting, runs, METHODS)
    show_onset(steps)
    print(f"\n{len(tests)} tests on this page.")
    show_tests("p-values of McNemar's exact test (with Holm's correction)", tests, "main")
    show_endings(f"{setting} decayed linearly to zero", runs, pair, decay="linear")
    show_border(first, tests)
    show_sensitivity(first)
    show_chosen(runs)
    show_tests("p-values on fresh seeds (with Holm's correction)", tests, "fresh seeds")
    show_higher_rate(first)
    show_feed_forward(first)
    show_endings(f"Digits, {setting}", runs, pair, data="digits")
    show_endings(f"Normalization before each sublayer, {setting}", runs, pair, model_type="roberta-prelayernorm")
    show_cost(runs)


def draw_methods(steps: pd.DataFrame) -> None:
    """Draw accuracy by step, one line per seed."""
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    for axes, method in zip(figure.subplots(1, 4, sharey=True), METHODS, strict=True):
        draw_accuracy(axes, choose(steps, method))
        axes.set_title(method)
        axes.label_outer()
    figure.savefig(HERE / "accuracy.png", dpi=150)


def draw_accuracy(axes: Axes, steps: pd.DataFrame) -> None:
    for _, run in steps.groupby("seed"):
        axes.plot(run["step"], run["accuracy"], "k-", linewidth=0.7)
    axes.set(xlabel="training step", ylabel="accuracy", ylim=(0.45, 1.01))


def draw_entropy(steps: pd.DataFrame, runs: pd.DataFrame) -> None:
    """Draw entropy by layer and step, for the median seed of two methods."""
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, method in zip(panels, ("none", "LBE"), strict=True):
        order = choose(runs, method).sort_values("accuracy")
        median = order.iloc[(len(order) - 1) // 2]
        lines = choose(steps, method)
        history = lines[lines["seed"] == median["seed"]].dropna(axis="columns").to_dict("records")
        image = draw_entropy_by_step(axes, history, highest=1)
        axes.set_title(f"{method}: accuracy {median['accuracy']:.2f}")
        axes.label_outer()
    figure.colorbar(image, ax=panels, label="batch entropy (nats)", extend="max")
    figure.savefig(HERE / "entropy.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="Only print the tables.")
    args = parser.parse_args()
    steps, runs = load()
    show_tables(steps, runs)
    if not args.tables:
        draw_methods(steps)
        draw_entropy(steps, runs)


if __name__ == "__main__":
    main()
