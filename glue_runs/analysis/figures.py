"""Figures of a grid (extra `plot`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..tasks.glue import get_task
from .selection import BASELINE, choose_settings
from .shapes import COMPARE_BY

_MARKERS = "os^Dv*"
_COLOURS = ("0.0", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")
_LINES = ("-", "--", ":", "-.")

matplotlib.use("Agg")  # files only: there may be no display


def draw(folder: Path, results: pd.DataFrame, records: Mapping[str, dict[str, Any]]) -> list[Path]:
    """Write the figures of the finished runs.

    Args:
        folder: where they are written.
        results: the runs, as `tabulate` returns them.
        records: the records of the same runs, by name; their histories hold the entropies.

    Returns:
        The paths of the figures.
    """
    chosen = choose_settings(results)
    if chosen.empty:
        return []
    with matplotlib.rc_context({"text.parse_math": False}):  # dollar signs are those of regular expressions
        figures = {
            "scores": _panels(chosen, _draw_scores),
            "learning_rates": _panels(results, _draw_learning_rates),
            **dict(_entropy_figures(chosen, records)),
        }
        paths = []
        for name, figure in figures.items():
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=150)
    return paths


def _panels(results: pd.DataFrame, draw_panel: Callable[[Axes, pd.DataFrame], None]) -> Figure:
    """One panel for each setup, titled by what distinguishes it."""
    setups = list(results.groupby(COMPARE_BY, sort=False))
    figure = Figure(figsize=(1.2 + 3.2 * len(setups), 3.4), layout="constrained")
    for axes, (_, rows) in zip(figure.subplots(1, len(setups), squeeze=False)[0], setups, strict=True):
        axes.set_title(", ".join(str(rows[key].iloc[0]) for key in _varying(results)), fontsize="medium")
        axes.set_ylabel(f"test {get_task(rows['task'].iloc[0]).main_metric.replace('_', ' ')}")
        axes.spines[["top", "right"]].set_visible(False)
        draw_panel(axes, rows)
    return figure


def _varying(results: pd.DataFrame) -> list[str]:
    """The columns that distinguish setups: the task, and what else differs between them."""
    return [key for key in COMPARE_BY if key == "task" or results[key].nunique() > 1]


def _file_name(text: str) -> str:
    """A file name for the text; where it is changed or cut, a hash of the text keeps it unique."""
    name = re.sub(r"[^\w.-]+", "_", text)[:80]
    return name if name == text else f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _methods(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """Each method with its runs and a style that also differs in greyscale."""
    for index, (method, own) in enumerate(rows.groupby("method", sort=False)):
        look = {"marker": _MARKERS, "color": _COLOURS, "linestyle": _LINES}
        yield method, own, {key: values[index % len(values)] for key, values in look.items()} | {"fillstyle": "none"}


def _draw_scores(axes: Axes, rows: pd.DataFrame) -> None:
    names = []
    for position, (method, own, look) in enumerate(_methods(rows)):
        scores = own["test"].to_numpy()
        offsets = np.linspace(-0.12, 0.12, len(scores)) if len(scores) > 1 else np.zeros(1)
        axes.plot(position + offsets, scores, **{**look, "linestyle": "none"})
        axes.hlines(scores.mean(), position - 0.25, position + 0.25, color="black", linewidth=1)
        names.append(method.replace(" on ", " on\n").replace("_", " "))
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)


def _draw_learning_rates(axes: Axes, rows: pd.DataFrame) -> None:
    for index, (method, own, look) in enumerate(_methods(rows)):
        # At each learning rate the alpha and beta that validation chooses there.
        best = pd.concat([choose_settings(at_rate) for _, at_rate in own.groupby("learning_rate")])
        if best.empty:
            continue
        scores = best.groupby("learning_rate")["test"].agg(["mean", "min", "max"])
        spread = np.abs(scores[["min", "max"]].sub(scores["mean"], axis=0).to_numpy().T)
        beside = scores.index * 1.03**index  # so that spreads do not hide each other
        axes.errorbar(beside, scores["mean"], spread, label=method.replace("_", " "), capsize=3, **look)
    rates = sorted(rows["learning_rate"].unique())
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    axes.set_xlim(rates[0] / 1.3, rates[-1] * 1.3)
    axes.set_xlabel("learning rate")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def _entropy_figures(chosen: pd.DataFrame, records: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """For each LBE method: the entropies of its layers during training, those of the baseline, and the targets.

    Runs that diverged are left out: they end early, or have no entropies.
    """
    for _, setup in chosen[~chosen["diverged"]].groupby(COMPARE_BY, sort=False):
        runs_of = {
            method: [records[name] for name in own["name"] if _has_entropies(records[name])]
            for method, own in setup.groupby("method", sort=False)
        }
        for method, runs in runs_of.items():
            if method == BASELINE or not runs or not all(line["targets"] for run in runs for line in run["history"]):
                continue
            beside = [run for run in runs_of.get(BASELINE, []) if run["layers"] == runs[0]["layers"]]
            parts = [str(setup[key].iloc[0]) for key in _varying(chosen)]
            name = _file_name("_".join(["entropy", *parts, method.removeprefix("LBE on ")]))
            yield name, _draw_entropy({**({BASELINE: beside} if beside else {}), method: runs})


def _has_entropies(record: dict[str, Any]) -> bool:
    return bool(record["history"]) and all(line["entropies"] for line in record["history"])


def _draw_entropy(methods: dict[str, list[dict[str, Any]]]) -> Figure:
    maps = {method: _over_training(runs, "entropies") for method, runs in methods.items()}
    targets = _over_training(list(methods.values())[-1], "targets")[:, -1:]
    layers = list(methods.values())[-1][0]["layers"]
    highest = max(float(np.nanmax(values, initial=0.0)) for values in (*maps.values(), targets))
    figure = Figure(figsize=(2.6 + 3.4 * len(maps), 1.4 + 0.28 * len(layers)), layout="constrained")
    widths = [*[8.0] * len(maps), 1.0]
    panels = figure.subplots(1, len(widths), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axes, (name, values) in zip(panels, [*maps.items(), ("target", targets)], strict=True):
        image = axes.imshow(
            values, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=highest, interpolation="nearest"
        )
        axes.set_title(name.replace("_", " "), fontsize="medium")
        if name == "target":
            axes.set_xticks([])
            for row, target in enumerate(targets[:, 0]):
                light = target < highest / 2
                axes.text(0, row, f"{target:.2f}", ha="center", va="center", fontsize=6, color="w" if light else "k")
        else:
            steps = [line["step"] for line in methods[name][0]["history"]]
            ticks = np.linspace(0, len(steps) - 1, 4).round().astype(int)
            axes.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
            axes.set_xlabel("training step")
    panels[0].set_yticks(range(len(layers)), [_short(layer) for layer in layers], fontsize="small")
    figure.colorbar(image, ax=panels, label="batch entropy (nats)")
    return figure


def _over_training(runs: list[dict[str, Any]], key: str) -> NDArray[np.float64]:
    """Mean over the runs that logged at the same steps as the first one, shape `(layers, log lines)`."""
    steps = [[line["step"] for line in run["history"]] for run in runs]
    histories = [np.array([line[key] for line in run["history"]]).T for run in runs]
    alike = [history for history, own in zip(histories, steps, strict=True) if own == steps[0]]
    mean: NDArray[np.float64] = np.mean(alike, axis=0)
    return mean


def _short(layer: str) -> str:
    """`bert.encoder.layer.3.output.dense` as `layer.3.output.dense`."""
    return re.sub(r"^.*?(?=layers?\.\d)|^[a-z]+\.(?=pooler)", "", layer)
