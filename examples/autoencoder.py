"""A variational autoencoder of plain ReLU layers, without the penalty and with it, by depth.

    python examples/autoencoder.py                                      # scikit-learn's digits
    python examples/autoencoder.py --depths 50 --seeds 0 1 2
    python examples/autoencoder.py --data mnist --data_dir path/to/idx  # the files of MNIST or Fashion-MNIST

The module returns the loss itself, reconstruction and Kullback-Leibler divergence; the penalty lies on every hidden
layer of encoder and decoder. `Trainer` is `LBETrainer` with `lbe_beta=0`. Takes every argument of
`LBETrainingArguments`, too; needs the extra `examples`.
"""

import copy
import gzip
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import StackDataset
from torchmetrics.functional.image import structural_similarity_index_measure
from transformers import HfArgumentParser, set_seed

from lbe_hf import LBETrainer, LBETrainingArguments


@dataclass
class Arguments(LBETrainingArguments):
    depths: list[int] = field(default_factory=lambda: [1, 5, 10, 25, 50], metadata={"help": "Layers on either side."})
    width: int = field(default=128, metadata={"help": "Units of a hidden layer."})
    latent: int = field(default=10, metadata={"help": "Dimensions of the code."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One network each for every method."})
    data: str = field(default="digits", metadata={"help": "digits or mnist.", "choices": ["digits", "mnist"]})
    data_dir: str = field(default=".", metadata={"help": "Folder of the four IDX files, plain or .gz."})
    output_dir: str = "runs/autoencoder"
    num_train_epochs: float = 100
    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 128
    lbe_beta: float = 0.5
    lbe_alpha: float = 1.0
    lbe_target_modules: str = r"(encoder|decoder)\.\d+\.1"  # the ReLU of each layer
    logging_strategy: str = "no"
    save_strategy: str = "no"


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
        # Pixels as Gaussians of deviation 0.2: a larger one leaves the code empty.
        return {"loss": (error / (2 * 0.2**2) + divergence).mean(), "reconstruction": reconstruction}


def hidden(sizes: list[int]) -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(sizes)]


def load_images(data: str, data_dir: str) -> tuple[Tensor, Tensor]:
    """Training and test images (N, 1, H, W), from 0 to 1."""
    if data == "digits":
        parts = train_test_split(load_digits().images, test_size=0.2, random_state=0)
    else:
        parts = [read_idx(Path(data_dir) / f"{split}-images-idx3-ubyte") for split in ("train", "t10k")]
    train, test = (torch.tensor(part).float()[:, None] for part in parts)
    return train / train.max(), test / train.max()


def read_idx(path: Path) -> np.ndarray:
    """Bytes of an IDX file, plain or .gz: two zeros, the type, the number of dimensions, each of them, the data."""
    packed = path.with_name(f"{path.name}.gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    start = 4 + 4 * content[3]
    return np.frombuffer(content, np.uint8, offset=start).reshape(np.frombuffer(content[4:start], ">u4"))


def reconstruct(args: Arguments, depth: int, train: Tensor, test: Tensor) -> Tensor:
    """The test images as one trained network gives them back."""
    set_seed(args.seed)
    model = VariationalAutoencoder(train[0].numel(), depth, args.width, args.latent)
    LBETrainer(model, args, train_dataset=StackDataset(images=train)).train()
    model.eval()
    with torch.no_grad():
        return model(test.to(args.device))["reconstruction"].cpu()


def draw(rows: dict[str, Tensor], folder: str) -> None:
    """Ten images a row, the given ones on top."""
    figure = Figure(figsize=(6, 0.5 * len(rows)), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow(torch.cat(list(images[:10, 0]), 1).numpy(), cmap="gray_r", vmin=0, vmax=1, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    figure.savefig(f"{folder}/reconstructions.png", dpi=150)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Trains every network, prints the table, draws the first seed, and returns the table."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    train, test = load_images(args.data, args.data_dir)
    # The usual window of SSIM, 11 pixels wide, is larger than a digit of scikit-learn.
    window = {"sigma": 0.5 if test.shape[-1] < 16 else 1.5, "data_range": 1.0}
    table, pictures = [], {"test images": test}
    for depth, beta, seed in product(args.depths, (0.0, args.lbe_beta), args.seeds):
        run, trainer = copy.copy(args), "LBETrainer" if beta else "Trainer"
        run.lbe_beta, run.seed = beta, seed
        images = reconstruct(run, depth, train, test)
        pictures.setdefault(f"{trainer}, depth {depth}", images)
        scores = {"mse": (images - test).square().mean().item()}
        scores["ssim"] = structural_similarity_index_measure(images, test, **window).item()
        table.append({"depth": depth, "trainer": trainer, "seed": seed, **scores})
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    draw(pictures, args.output_dir)
    nothing = (test - train.mean(0)).square().mean()
    print(f"{args.num_train_epochs:g} epochs; the mean training image alone has mse {nothing:.4f}")
    print((results := pd.DataFrame(table)).round(4).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
