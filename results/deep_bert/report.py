"""Tables (Markdown, printed) and pictures of the runs that `study.py` has finished.

    python results/deep_bert/report.py             # --tables leaves the pictures as they are

A run is trained if its accuracy over the last 100 steps is above 0.95; it was so for a while if that holds for any 20
steps of its log; it is silent if a layer's batch entropy is below 0.001 nats in most of the last 100 steps.
"""

import argparse
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest, fisher_exact

from lbe_hf.figures import draw_entropy_by_step

HERE = Path(__file__).parent
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
METHODS = {"none": (0, False), "LBE": (0, True), "warm-up": (40, False), "warm-up + LBE": (40, True)}


def load() -> tuple[pd.DataFrame, pd.DataFrame]:
    """A line for every 20 steps of every run, and a line for every run over its last 100 steps."""
    steps = pd.concat([pd.read_csv(path) for path in sorted((HERE / "runs").glob("*.csv"))], ignore_index=True)
    steps = steps.copy().assign(lowest_entropy=steps.filter(like="entropy/").min(axis="columns"))
    last = steps[steps["step"] > 300].groupby(SETTING, as_index=False)
    runs = last[["accuracy", "test_accuracy", "seconds_per_step"]].mean()
    runs["lowest_entropy"] = last["lowest_entropy"].median()["lowest_entropy"]  # one spike does not end a silence
    runs["trained"] = runs["accuracy"] > 0.95
    runs["learned"] = (steps.groupby(SETTING)["accuracy"].max() > 0.95).to_numpy()
    runs["silent"] = runs["lowest_entropy"] < COLLAPSED_ENTROPY
    return steps, runs


def choose(table: pd.DataFrame, method: str, **setting: object) -> pd.DataFrame:
    """The lines of a method, by default with the settings of the main comparison."""
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
    """How many runs trained, with the exact 95% interval of their share, how many fell silent, and how they ended."""
    trained, count = int(runs["trained"].sum()), len(runs)
    if not count:
        return {"trained": "not run"}
    interval = binomtest(trained, count).proportion_ci(method="exact")
    accuracy = runs["accuracy"]
    ending = {
        "trained": f"{trained} of {count}",
        "95% interval": f"{interval.low:.0%} to {interval.high:.0%}",
        "for a while": f"{int(runs['learned'].sum())} of {count}",
        "silent": f"{int(runs['silent'].sum())} of {count}",
        "accuracy: median (range)": f"{accuracy.median():.3f} ({accuracy.min():.3f} to {accuracy.max():.3f})",
        "lowest entropy: median": f"{runs['lowest_entropy'].median():.3f}",
    }
    if runs["test_accuracy"].notna().all():
        ending["test accuracy: median"] = f"{runs['test_accuracy'].median():.3f}"
    return ending


def share(runs: pd.DataFrame) -> str:
    return f"{int(runs['trained'].sum())}/{len(runs)} ({runs['accuracy'].median():.2f})" if len(runs) else "not run"


def compare(runs: pd.DataFrame, one: str, other: str, **setting: object) -> dict[str, str]:
    """P-values, two-sided, for two methods: Fisher's exact test, and McNemar's, which pairs the runs of a seed."""
    p_values = {}
    for name, outcome in {"trained": "trained", "for a while": "learned", "silent": "silent"}.items():
        samples = {method: choose(runs, method, **setting).set_index("seed")[outcome] for method in (one, other)}
        pairs = pd.DataFrame(samples).dropna().astype(bool)
        left, right = pairs[one], pairs[other]
        unpaired = fisher_exact([[sample.sum(), (~sample).sum()] for sample in (left, right)]).pvalue
        p_values[name] = f"{unpaired:.2g} ({mcnemar((left & ~right).sum(), (right & ~left).sum()):.2g})"
    return p_values


def mcnemar(only_left: int, only_right: int) -> float:
    """P-value, two-sided and exact, of the pairs in which one of the two did what the other did not."""
    differing = only_left + only_right
    return float(binomtest(only_left, differing).pvalue) if differing else 1.0


def show(title: str, table: pd.DataFrame) -> None:
    lines = table.fillna("").reset_index().astype(str)
    rows = [lines.columns.tolist(), ["---"] * lines.shape[1], *lines.to_numpy().tolist()]
    print(f"\n## {title}\n", *("| " + " | ".join(row) + " |" for row in rows), sep="\n")


def show_endings(title: str, runs: pd.DataFrame, methods: Iterable[str], **setting: object) -> None:
    table = {method: describe(choose(runs, method, **setting)) for method in methods}
    if all(ending == {"trained": "not run"} for ending in table.values()):
        print(f"\n{title}: not run.")
        return
    show(title, pd.DataFrame(table).T.rename_axis("method"))


def show_tests(runs: pd.DataFrame) -> None:
    pairs = [("LBE", "none"), ("LBE", "warm-up"), ("warm-up", "none"), ("warm-up + LBE", "warm-up")]
    tests = {f"{one} against {other}": compare(runs, one, other) for one, other in pairs}
    tests["LBE against none, linear decay"] = compare(runs, "LBE", "none", decay="linear")
    show("p-values of Fisher's exact test (of McNemar's)", pd.DataFrame(tests).T.rename_axis("comparison"))


def show_border(runs: pd.DataFrame) -> None:
    depths, rates, key = (12, 24, 48, 96), (3e-4, 1e-3, 2e-3), ["depth", "learning_rate", "seed"]
    table = {
        depth: {
            f"{rate:g}, {method}": share(choose(runs, method, depth=depth, learning_rate=rate))
            for rate, method in product(rates, ("none", "LBE"))
        }
        for depth in depths
    }
    show("Trained by depth and learning rate, median accuracy", pd.DataFrame(table).T.rename_axis("layers"))
    trained = {
        method: pd.concat(
            choose(runs, method, depth=depth, learning_rate=rate) for depth, rate in product(depths, rates)
        ).set_index(key)["trained"]
        for method in ("none", "LBE")
    }
    pairs = pd.DataFrame(trained).dropna().astype(bool)
    gained, lost = (pairs["LBE"] & ~pairs["none"]).sum(), (pairs["none"] & ~pairs["LBE"]).sum()
    p_value = f"McNemar's p = {mcnemar(gained, lost):.2g}"
    print(f"\nOf {len(pairs)} pairs {gained} trained only with LBE, {lost} only without ({p_value})")


def show_sensitivity(runs: pd.DataFrame) -> None:
    table = {
        alpha: {f"beta {beta}": share(choose(runs, "LBE", alpha=alpha, beta=beta)) for beta in (0.05, 0.2, 0.5, 2.0)}
        for alpha in (0.3, 0.5, 0.7, 1.0)
    }
    show("Trained by alpha and beta, 48 layers, learning rate 1e-3", pd.DataFrame(table).T.rename_axis("alpha"))


def show_chosen(runs: pd.DataFrame) -> None:
    """A cell of the grid in which all runs trained, on seeds that the grid does not have."""
    fresh, chosen, name = runs[runs["seed"] >= 5], {"alpha": 0.5, "beta": 2.0}, "LBE, alpha 0.5, beta 2"
    table = {method: describe(choose(fresh, method)) for method in METHODS}
    table[name] = describe(choose(fresh, "LBE", **chosen))
    show("Alpha 0.5 and beta 2, on fresh seeds", pd.DataFrame(table).T.rename_axis("method"))
    tests = {f"{name}, against {other}": compare(fresh, "LBE", other, **chosen) for other in ("none", "warm-up")}
    show("p-values on fresh seeds", pd.DataFrame(tests).T.rename_axis("comparison"))


def show_cost(runs: pd.DataFrame) -> None:
    times = pd.DataFrame(
        {name: choose(runs, name).set_index("seed")["seconds_per_step"] for name in ("none", "LBE")}
    ).dropna()
    medians, ratio = times.median(), (times["LBE"] / times["none"]).median()
    print(f"\n{medians['none']:.3f} s a step without, {medians['LBE']:.3f} with; median of ratios by seed {ratio:.3f}")


def show_tables(runs: pd.DataFrame) -> None:
    setting, pair, first = "48 layers, learning rate 1e-3", ("none", "LBE"), runs[runs["seed"] < 5]
    print(f"{len(runs)} runs")
    show_endings(setting, runs, METHODS)
    show_tests(runs)
    show_endings(f"{setting} decayed linearly to zero", runs, pair, decay="linear")
    show_border(first)
    show_sensitivity(first)
    show_chosen(runs)
    show_endings(f"Penalty on the feed-forward outputs, {setting}", runs, ["LBE"], activations="feed_forward")
    show_endings(f"Digits, {setting}", runs, pair, data="digits")
    show_endings(f"Normalization before each sublayer, {setting}", runs, pair, model_type="roberta-prelayernorm")
    show_cost(runs)


def draw_methods(steps: pd.DataFrame) -> None:
    """Accuracy by step, a line a seed."""
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
    """Entropy by layer and step, for the median seed of two methods."""
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
    show_tables(runs)
    if not args.tables:
        draw_methods(steps)
        draw_entropy(steps, runs)


if __name__ == "__main__":
    main()
