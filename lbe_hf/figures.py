"""Pictures of batch entropies (extra `plot`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from .diagnosis import InformationFlow
from .monitor import by_layer


def draw_flow(flow: InformationFlow) -> Figure:
    """The batch entropy of each layer, from the input on the left to the output; silent layers are marked."""
    figure = Figure(figsize=(4 + 0.12 * min(len(flow.names), 60), 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(flow.entropies, color="black", marker="o", markersize=3, linewidth=1)
    silent = [index for index, name in enumerate(flow.names) if name in flow.silent]
    if silent:
        axes.plot(silent, [0] * len(silent), "x", color="black", label="lets nothing through", clip_on=False)
        axes.legend(frameon=False)
    shown = np.unique(np.linspace(0, len(flow.names) - 1, 26).round().astype(int))
    axes.set_xticks(shown, [flow.names[index] for index in shown], rotation=90, fontsize="x-small")
    axes.set_ylabel("batch entropy (nats)")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_targets(
    layers: Sequence[str], entropies: Sequence[float], targets: Sequence[float], first_entropies: Sequence[float]
) -> Figure:
    """The batch entropy of each layer at the end of training, in nats, beside its target and where it began.

    Args:
        layers: names, one a layer.
        entropies: at the last log line, one a layer.
        targets: as learned, one a layer; empty if nothing was regularized.
        first_entropies: at the first log line, one a layer; empty if unknown.
    """
    figure = Figure(figsize=(5.5, 1.3 + 0.26 * len(layers)), layout="constrained")
    axes = figure.subplots()
    places = range(len(layers))
    if first_entropies:
        axes.plot(first_entropies, places, "o:", color="0.6", fillstyle="none", label="at the first log line")
    axes.plot(entropies, places, "o-", color="tab:blue", label="at the last log line")
    if targets:
        axes.plot(targets, places, "|", color="black", markersize=12, label="target as learned")
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
        highest: nats at the upper end of the colours; pictures that are compared need the same one.

    Returns:
        The image, for a colour bar.

    Raises:
        ValueError: the history has no entropies.
    """
    lines = [line for line in log_history if by_layer(line, "entropy")]
    if not lines:
        raise ValueError("The log history has no entropies of layers: train with lbe_log_entropy=True.")
    values = np.array([by_layer(line, "entropy") for line in lines]).T
    layers = len(values)
    steps = lines[-1]["step"]
    image = axes.imshow(
        np.minimum(values, highest),
        aspect="auto",
        origin="lower",
        cmap="cividis",
        vmin=0,
        vmax=highest,
        interpolation="nearest",
        extent=(0, steps, -0.5, layers - 0.5),
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel("layer")
    return image
