"""The loss around the weights of a trained plain network, with the penalty and without.

    python examples/loss_surface.py                                   # 15 layers, scikit-learn's digits
    python examples/loss_surface.py --paper --data_dir path/to/mnist  # 15 and 30 layers of 500, 2000 steps, 50 x 50

Two random directions, the same for both networks, span the plane. Each row of a weight matrix has the same length in
the direction as in the weights (filter normalization, Li et al., 2018, arXiv 1712.09913). The penalty applies to all
hidden layers except the first and the last. For the network trained with it, the loss with the penalty is drawn too.
The script also takes all `LBETrainingArguments`. It needs the extra `examples`.
"""

import copy
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from experiment import dataset, parse
from images import ImageArguments, Split, load_images, standardize
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from plain_networks import PlainNetwork
from torch import Tensor, nn
from tqdm import tqdm
from transformers import set_seed

from lbe_hf import LBETrainer, LBETrainingArguments, batch_entropies
from lbe_hf.regularizer import add_penalty

Direction = dict[str, Tensor]


@dataclass
class Arguments(ImageArguments, LBETrainingArguments):
    depths: list[int] = field(default_factory=lambda: [15], metadata={"help": "Hidden layers."})
    width: int = field(default=128, metadata={"help": "Units of a hidden layer."})
    resolution: int = field(default=25, metadata={"help": "Points per axis, from -1 to 1."})
    surface_images: int = field(default=512, metadata={"help": "Training images for the losses."})
    output_dir: str = "runs/loss_surface"
    max_steps: int = 500
    learning_rate: float = 3e-4
    lr_scheduler_type: str = "constant"
    per_device_train_batch_size: int = 256
    max_grad_norm: float = 0.0
    lbe_alpha: float = 0.5
    lbe_beta: float = 0.5
    lbe_target_modules: str = r"hidden\.\d+"  # `train` leaves out the first and the last
    lbe_log_entropy: bool = True  # so that there are targets without the penalty too
    logging_strategy: str = "no"
    save_strategy: str = "no"
    seed: int = 0


def defaults(given: Namespace) -> dict[str, Any]:
    """With `--paper`, the settings of the authors' script."""
    sizes = {"depths": [15, 30], "width": 500, "max_steps": 2000, "resolution": 50, "surface_images": 5120}
    return {"data": "mnist", "validation_fraction": 0.0, **sizes} if given.paper else {}


def train(args: Arguments, depth: int, beta: float, images: Split) -> LBETrainer:
    args = copy.copy(args)
    args.lbe_beta, args.lbe_layers = beta, list(range(1, depth - 1))
    set_seed(args.seed)
    model = PlainNetwork(images.images.shape[1:], int(images.labels.max()) + 1, "mlp", depth, args.width)
    trainer = LBETrainer(model, args, train_dataset=dataset(images))
    trainer.train()
    return trainer


def direction(model: nn.Module, seed: int) -> Direction:
    """A random direction whose rows are as long as those of the weights; biases are not changed."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: weight for name, weight in model.state_dict().items() if weight.dim() == 2}
    random = {name: torch.randn(weight.shape, generator=generator).to(weight) for name, weight in weights.items()}
    lengths = {name: weight.norm(dim=1, keepdim=True) for name, weight in weights.items()}
    return {name: lengths[name] * rows / rows.norm(dim=1, keepdim=True) for name, rows in random.items()}


@torch.no_grad()
def losses(trainer: LBETrainer, images: Split) -> tuple[float, float]:
    """The task loss and the loss with the penalty, averaged over the batches."""
    model, size = trainer.model, trainer.args.train_batch_size
    parts = []
    for batch, labels in zip(images.images.split(size), images.labels.split(size), strict=True):
        if len(labels) == 1:  # has no entropy
            continue
        hidden, activations = batch.to(trainer.args.device).flatten(1), []
        for layer in model.hidden:
            hidden = layer(hidden)
            activations.append(hidden)
        loss = nn.functional.cross_entropy(model.classifier(hidden), labels.to(hidden.device))
        penalty = trainer.lbe(batch_entropies(activations[1:-1]))
        parts.append(torch.stack([loss, add_penalty(loss, penalty, trainer.args.lbe_form, steps=1)[0]]))
    task_loss, loss = torch.stack(parts).mean(0).tolist()
    return task_loss, loss


@torch.no_grad()
def surface(trainer: LBETrainer, images: Split, resolution: int) -> pd.DataFrame:
    """Both losses at all points of the plane; (0, 0) is the trained model."""
    model = trainer.model.eval()
    center = copy.deepcopy(model.state_dict())
    directions = [direction(model, seed) for seed in (1, 2)]
    axis, table = np.linspace(-1, 1, resolution), []
    for x in tqdm(axis, disable=trainer.args.disable_tqdm, desc="surface"):
        for y in axis:
            moved = {name: center[name] + x * directions[0][name] + y * directions[1][name] for name in directions[0]}
            model.load_state_dict(center | moved)
            table.append((x, y, *losses(trainer, images)))
    model.load_state_dict(center)
    return pd.DataFrame(table, columns=["x", "y", "task_loss", "loss"])


def draw(surfaces: dict[str, pd.DataFrame], folder: str) -> None:
    """Draw one row per depth, all with the same colour scale."""
    panels = []
    for name, points in surfaces.items():
        panels.append((f"{name}: task loss", points.pivot(index="y", columns="x", values="task_loss")))
        if name.startswith("LBETrainer"):
            panels.append((f"{name}: with the penalty", points.pivot(index="y", columns="x", values="loss")))
    figure = Figure(figsize=(10, 0.5 + len(panels)), layout="constrained")
    lowest = min(values.min(axis=None) for _, values in panels)
    highest = max(values.max(axis=None) for _, values in panels)
    norm = LogNorm(max(lowest, 1e-4), max(highest, 1e-3))
    axes = figure.subplots(len(panels) // 3, 3, sharex=True, sharey=True, squeeze=False)
    for panel, (title, values) in zip(axes.flat, panels, strict=True):
        image = panel.pcolormesh(values.columns, values.index, values, norm=norm, cmap="cividis", shading="nearest")
        panel.plot(0, 0, "w+")
        panel.set_title(title, fontsize="small")
    figure.colorbar(image, ax=axes, label="loss")
    figure.savefig(Path(folder, "loss_surface.png"), dpi=150)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Train both networks of each depth, draw their surfaces, and return the points."""
    args = parse(Arguments, defaults, argv)
    images = standardize(load_images(args)).train
    shown = Split(images.images[: args.surface_images], images.labels[: args.surface_images])
    surfaces = {}
    for depth in args.depths:
        for trainer, beta in {"Trainer": 0.0, "LBETrainer": args.lbe_beta}.items():
            surfaces[f"{trainer}, {depth} layers"] = surface(train(args, depth, beta, images), shown, args.resolution)
    table = pd.concat([points.assign(network=name) for name, points in surfaces.items()], ignore_index=True)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    table.to_csv(Path(args.output_dir, "loss_surface.csv"), index=False)
    draw(surfaces, args.output_dir)
    print(f"Task loss after {args.max_steps} steps, on the plane around the weights; figure in {args.output_dir}")
    print(table.groupby("network", sort=False)["task_loss"].agg(["min", "median", "max"]).round(3).to_string())
    return table


if __name__ == "__main__":
    main()
