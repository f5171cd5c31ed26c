"""Figures of the information flow through the layers (needs the extra `plot`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .flow_history import FlowHistory
from .layer_statistics import LayerStatistics
from .log_lines import by_layer
from .verdict import Finding

_STATISTICS = {
    "batch_entropy": "batch entropy (nats)",
    "variance_share": "variance share",
    "effective_rank": "effective rank",
}


def draw_flow(layers: Sequence[LayerStatistics], findings: Sequence[Finding]) -> Figure:
    """Batch entropy, variance share and effective rank of each layer, from the input on the left to the output.

    The layer at which each finding starts is marked.
    """
    names = [layer.name for layer in layers]
    figure = Figure(figsize=(4 + 0.12 * min(len(layers), 60), 7), layout="constrained")
    panels = figure.subplots(len(_STATISTICS), 1, sharex=True)
    marked = {names.index(finding.layer): finding.kind for finding in findings if finding.layer in names}
    for axes, (statistic, label) in zip(panels, _STATISTICS.items(), strict=True):
        axes.plot([getattr(layer, statistic) for layer in layers], "ko-", markersize=3, linewidth=1)
        for index in marked:
            axes.axvline(index, color="tab:red", linewidth=1)
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    for index, kind in marked.items():
        panels[0].annotate(kind.replace("_", " "), (index, 1), xycoords=("data", "axes fraction"), color="tab:red")
    shown = np.unique(np.linspace(0, len(layers) - 1, 26).round().astype(int))
    panels[-1].set_xticks(shown, [names[index] for index in shown], rotation=90, fontsize="x-small")
    return figure


def draw_flow_by_step(history: FlowHistory) -> Figure:
    """Batch entropy, variance share and effective rank as heat maps of layers by steps, the first layer at the bottom.

    Steps with a new fault are marked.
    """
    figure = Figure(figsize=(8, 9), layout="constrained")
    panels = figure.subplots(len(_STATISTICS), 1, sharex=True)
    for axes, (statistic, label) in zip(panels, _STATISTICS.items(), strict=True):
        values = np.array([[getattr(layer, statistic) for layer in layers] for layers in history.layers]).T
        highest = np.nanmax(values) if np.isfinite(values).any() else 0
        figure.colorbar(_heat_map(axes, values, values.shape[1], highest or 1), ax=axes, label=label)
        for event in history.events:
            axes.axvline(history.steps.index(event.step) + 0.5, color="tab:red", linewidth=1)
    shown = np.unique(np.linspace(0, len(history.steps) - 1, 9).round().astype(int))
    panels[-1].set_xticks(shown + 0.5, [history.steps[index] for index in shown])
    panels[-1].set_xlabel("training step")
    return figure


def draw_targets(
    layers: Sequence[str], entropies: Sequence[float], targets: Sequence[float], first_entropies: Sequence[float]
) -> Figure:
    """Batch entropy of each layer in nats at the first and the last log line, and its target.

    Args:
        layers: names of the layers.
        entropies: at the last log line, one per layer.
        targets: learned targets, one per layer; empty if nothing was regularized.
        first_entropies: at the first log line, one per layer; empty if unknown.
    """
    figure = Figure(figsize=(5.5, 1.3 + 0.26 * len(layers)), layout="constrained")
    axes = figure.subplots()
    places = range(len(layers))
    if first_entropies:
        axes.plot(first_entropies, places, "o:", color="0.6", fillstyle="none", label="at the first log line")
    axes.plot(entropies, places, "o-", color="tab:blue", label="at the last log line")
    if targets:
        axes.plot(targets, places, "|", color="black", markersize=12, label="learned target")
    axes.set_yticks(places, layers, fontsize="small")
    axes.set_xlabel("batch entropy (nats)")
    highest = max(*entropies, *first_entropies, *targets, 0)
    axes.set_xlim(0, 1.05 * highest if highest > 0 else 1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    return figure


def draw_entropy_by_step(axes: Axes, log_history: Sequence[Mapping[str, Any]], highest: float) -> AxesImage:
    """Draw the batch entropy of each layer over training, the first layer at the bottom.

    Args:
        axes: where to draw.
        log_history: `trainer.state.log_history` of a run with `lbe_log_entropy=True`.
        highest: upper end of the colour scale, in nats; use the same value for figures to be compared.

    Returns:
        The image, to which a colour bar can be attached.

    Raises:
        ValueError: the history has no entropies.
    """
    lines = [line for line in log_history if by_layer(line, "entropy")]
    if not lines:
        raise ValueError("The log history has no entropies of layers: train with lbe_log_entropy=True.")
    values = np.array([by_layer(line, "entropy") for line in lines]).T
    axes.set_xlabel("training step")
    return _heat_map(axes, np.minimum(values, highest), lines[-1]["step"], highest)


def _heat_map(axes: Axes, values: NDArray[np.float64], width: float, highest: float) -> AxesImage:
    """Draw layers by steps from 0 to `width`, the first layer at the bottom."""
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer")
    return axes.imshow(
        values, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=highest, interpolation="nearest",
        extent=(0, width, -0.5, len(values) - 0.5),
    )  # fmt: skip
