"""Variational autoencoders of plain ReLU layers at several depths, with the penalty and without.

    python examples/autoencoder.py                                   # scikit-learn's digits
    python examples/autoencoder.py --depths 50 --seeds 0 1 2
    python examples/autoencoder.py --paper --data_dir path/to/mnist  # section 4.4
    python examples/autoencoder.py --paper --data fashion_mnist --data_dir path/to/fashion_mnist

The module returns its own loss, the sum of reconstruction error and Kullback-Leibler divergence. The penalty applies
to all hidden layers of encoder and decoder. The waterfall schedule halves the learning rate when the validation loss
stops falling. The test images are evaluated once, at the end. `Trainer` is `LBETrainer` with `lbe_beta=0`. The script
also takes all `LBETrainingArguments`. It needs the extra `examples`.
"""

from argparse import Namespace
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from experiment import check_seed, methods_and_seeds, parse, show_only_a_bar
from images import ImageArguments, Splits, load_images
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import StackDataset
from torchmetrics.functional.image import structural_similarity_index_measure
from transformers import set_seed

from lbe_hf import LBETrainer, LBETrainingArguments


@dataclass
class Arguments(ImageArguments, LBETrainingArguments):
    depths: list[int] = field(default_factory=lambda: [1, 5, 10, 25, 50], metadata={"help": "Layers of each half."})
    width: int = field(default=128, metadata={"help": "Units of a hidden layer."})
    latent: int = field(default=10, metadata={"help": "Dimensions of the code."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One network per method and seed."})
    output_dir: str = "runs/autoencoder"
    num_train_epochs: float = 100
    learning_rate: float = 1e-3
    lr_scheduler_type: str = "reduce_lr_on_plateau"
    per_device_train_batch_size: int = 128
    per_device_eval_batch_size: int = 512
    lbe_beta: float = 0.5
    lbe_alpha: float = 1.0
    lbe_target_modules: str = r"(encoder|decoder)\.\d+\.1"  # the ReLU of each layer
    logging_strategy: str = "no"
    eval_strategy: str = "epoch"
    save_strategy: str = "no"
    # The images are inputs and labels at once: without labels, `Trainer` computes no validation loss.
    label_names: list[str] | None = field(default_factory=lambda: ["images"])
    prediction_loss_only: bool = True


def defaults(given: Namespace) -> dict[str, Any]:
    """The waterfall schedule; with `--paper`, section 4.4 and the authors' scripts, except for the loss.

    The authors try alpha 1.5, 2.0 and 2.5, and beta 0.2, 0.5, 1.0 and 1.5.
    """
    waterfall = given.lr_scheduler_type == Arguments.lr_scheduler_type
    schedule = {"lr_scheduler_kwargs": {"factor": 0.5, "patience": 5}} if waterfall else {}
    if not given.paper:
        return schedule
    training = {"num_train_epochs": 50, "weight_decay": 1e-4, "max_grad_norm": 0.0}
    penalty = {"lbe_alpha": 2.0, "lbe_alpha_min": 0.5, "lbe_beta": 0.5}
    return {"data": "mnist", "width": 256} | schedule | training | penalty


class VariationalAutoencoder(nn.Module):
    def __init__(self, pixels: int, depth: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*hidden([pixels] + [width] * depth), nn.Linear(width, 2 * latent))
        self.decoder = nn.Sequential(*hidden([latent] + [width] * depth), nn.Linear(width, pixels))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.encoder(images.flatten(1)).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        reconstruction = self.decoder(mean + noise * (log_variance / 2).exp()).sigmoid().view_as(images)
        error = (reconstruction - images).square().flatten(1).sum(1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        # Pixels are Gaussian with a deviation of 0.2: with a larger one, the code carries no information.
        return {"loss": (error / (2 * 0.2**2) + divergence).mean(), "reconstruction": reconstruction}


def hidden(sizes: list[int]) -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(sizes)]


def train(args: Arguments, depth: int, splits: Splits) -> tuple[dict[str, float], Tensor]:
    """Train a network; return its validation and test scores, and the reconstructed test images."""
    set_seed(args.seed)
    model = VariationalAutoencoder(splits.train.images[0].numel(), depth, args.width, args.latent)
    training, validation, _ = (StackDataset(images=split.images) for split in splits)
    # The authors use Adam with weight decay as part of the gradient, which `--optim` does not offer.
    settings = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    adam = (torch.optim.Adam, settings) if args.paper and args.optim == Arguments.optim else None
    trainer = LBETrainer(model, args, train_dataset=training, eval_dataset=validation, optimizer_cls_and_kwargs=adam)
    show_only_a_bar(trainer)
    trainer.train()
    scores = {}
    for name, images in (("validation", splits.validation.images), ("test", splits.test.images)):
        reconstruction = reconstruct(model, images)
        scores[f"{name}_mse"] = (reconstruction - images).square().mean().item()
        scores[f"{name}_ssim"] = similarity(reconstruction, images)
    return scores, reconstruction


@torch.no_grad()
def reconstruct(model: VariationalAutoencoder, images: Tensor) -> Tensor:
    model.eval()
    device = model.encoder[-1].weight.device
    return torch.cat([model(part.to(device))["reconstruction"].cpu() for part in images.split(512)])


def similarity(images: Tensor, originals: Tensor) -> float:
    """The mean structural similarity index (SSIM), at most 1."""
    # The usual window is 11 pixels wide, larger than a digit of scikit-learn.
    sigma = 0.5 if originals.shape[-1] < 16 else 1.5
    return float(structural_similarity_index_measure(images, originals, sigma=sigma, data_range=1.0))


def draw(rows: dict[str, Tensor], folder: str) -> None:
    """Draw ten images per row."""
    figure = Figure(figsize=(6, 0.5 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow(torch.cat(list(images[:10].mean(1)), 1).numpy(), cmap="gray_r", vmin=0, vmax=1, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    figure.savefig(f"{folder}/reconstructions.png", dpi=150)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Train all networks, draw reconstructions of the first seed, print the table, and return it."""
    args = parse(Arguments, defaults, argv)
    check_seed(args)
    splits = load_images(args)
    table, figures = [], {"test images": splits.test.images}
    for depth, (trainer, run) in product(args.depths, methods_and_seeds(args)):
        scores, images = train(run, depth, splits)
        figures.setdefault(f"{trainer}, depth {depth}", images)
        table.append({"depth": depth, "trainer": trainer, "seed": run.seed, **scores})
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    draw(figures, args.output_dir)
    nothing = (splits.test.images - splits.train.images.mean(0)).square().mean()
    print(f"{args.num_train_epochs:g} epochs; the mean training image alone has a test mse of {nothing:.4f}")
    print((results := pd.DataFrame(table)).round(4).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
