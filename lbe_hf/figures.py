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
    lines = [line for line in log_history if "entropy/layer_00" in line]
    if not lines:
        raise ValueError("The log history has no entropies of layers: train with lbe_log_entropy=True.")
    layers = sum(key.startswith("entropy/layer_") for key in lines[0])
    values = np.array([[line[f"entropy/layer_{layer:02d}"] for line in lines] for layer in range(layers)])
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
