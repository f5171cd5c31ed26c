"""Are the values of a unit over a batch normally distributed, as batch entropy assumes?

    python examples/neuron_distribution.py                                   # scikit-learn's digits
    python examples/neuron_distribution.py --paper --data_dir path/to/mnist  # batches of 1024, 5 epochs at 1e-5

The script trains a plain network of 6 layers with `Trainer`. For five random units of each layer it draws the values
after the ReLU over a batch of training images, and the normal distribution with the same mean and deviation. The table
has medians over the units of a layer, before and after the ReLU; a normal distribution has a skewness and an excess
kurtosis of 0. The script also takes all `TrainingArguments`. It needs the extra `examples`.
"""

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from experiment import dataset, parse
from images import ImageArguments, load_images, standardize
from matplotlib.figure import Figure
from plain_networks import PlainNetwork
from scipy import stats
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed

from lbe_hf import batch_entropy

UNITS = 5


@dataclass
class Arguments(ImageArguments, TrainingArguments):
    depth: int = field(default=6, metadata={"help": "Hidden layers."})
    width: int = field(default=500, metadata={"help": "Units of a hidden layer."})
    output_dir: str = "runs/neuron_distribution"
    num_train_epochs: float = 30
    learning_rate: float = 1e-4
    lr_scheduler_type: str = "constant"
    per_device_train_batch_size: int = 128
    max_grad_norm: float = 0.0
    logging_strategy: str = "no"
    save_strategy: str = "no"
    seed: int = 0


def defaults(given: Namespace) -> dict[str, Any]:
    """With `--paper`, the settings of the authors' script."""
    paper = {"num_train_epochs": 5, "learning_rate": 1e-5, "per_device_train_batch_size": 1024}
    return {"data": "mnist", "validation_fraction": 0.0, **paper} if given.paper else {}


@torch.no_grad()
def values_of(model: PlainNetwork, images: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Values of each hidden layer before and after the ReLU, both of shape (batch, width)."""
    pairs, hidden = [], images.flatten(1)
    for linear, relu in model.hidden:
        before = linear(hidden)
        hidden = relu(before)
        pairs.append((before.numpy(), hidden.numpy()))
    return pairs


def describe(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Medians over the units that are not constant."""
    described = {"entropy": batch_entropy(torch.tensor(after)).item(), "zeros": float((after == 0).mean())}
    for name, values in (("before", before), ("after", after)):
        alive = values[:, values.std(0) > 0]
        described[f"skewness_{name}"] = float(np.median(stats.skew(alive)))
        described[f"kurtosis_{name}"] = float(np.median(stats.kurtosis(alive)))
    return described


def draw(layers: list[np.ndarray], folder: str) -> None:
    """Draw one row per layer, the first on top, and one column per unit."""
    figure = Figure(figsize=(9, 1.4 * len(layers)), layout="constrained")
    generator = np.random.default_rng(0)
    units = min(UNITS, layers[0].shape[1])
    panels = figure.subplots(len(layers), units, squeeze=False)
    for number, (row, values) in enumerate(zip(panels, layers, strict=True), 1):
        for axes, unit in zip(row, generator.choice(values.shape[1], units, replace=False), strict=True):
            own = values[:, unit]
            axes.hist(own, bins=40, density=True, color="0.6")
            if own.std() > 0:
                points = np.linspace(own.min(), own.max(), 200)
                axes.plot(points, stats.norm.pdf(points, own.mean(), own.std()), "k-", linewidth=1)
            entropy = batch_entropy(torch.tensor(own[:, None])).item()
            axes.set_title(f"unit {unit}, {entropy:.1f} nats", fontsize="x-small")
            axes.tick_params(labelsize="x-small", labelleft=False)
        row[0].set_ylabel(f"layer {number}", fontsize="small")
    figure.savefig(Path(folder, "neuron_distribution.png"), dpi=150)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Train the network, draw its units, print the table with one row per hidden layer, and return it."""
    args = parse(Arguments, defaults, argv)
    splits = standardize(load_images(args))
    set_seed(args.seed)
    model = PlainNetwork(splits.train.images.shape[1:], splits.classes, "mlp", args.depth, args.width)
    Trainer(model, args, train_dataset=dataset(splits.train)).train()
    pairs = values_of(model.cpu().eval(), splits.train.images[: max(args.train_batch_size, 1024)])
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    draw([after for _, after in pairs], args.output_dir)
    layers = range(1, len(pairs) + 1)
    results = pd.DataFrame({"layer": layer, **describe(*pair)} for layer, pair in zip(layers, pairs, strict=True))
    print(f"{args.num_train_epochs:g} epochs; entropy in nats; figure in {args.output_dir}")
    print(results.round(2).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
