"""Very deep plain networks with the penalty, without it, and with normalization layers instead.

    python examples/plain_networks.py                                  # 50 dense layers, scikit-learn's digits
    python examples/plain_networks.py --init default he --seeds 0 1 2  # also He's initialization, three seeds
    python examples/plain_networks.py --network cnn                    # 20 convolutions of 3x3
    python examples/plain_networks.py --normalizations none batch layer weight selu
    python examples/plain_networks.py --paper --data_dir path/to/mnist # section 4.3: 50 layers of 1000 units
    python examples/plain_networks.py --paper --depth 500 --data_dir path/to/mnist
    python examples/plain_networks.py --paper --network cnn --init default delta_orthogonal --data_dir path/to/mnist
    python examples/plain_networks.py --paper --normalizations none batch layer weight selu --data_dir path/to/mnist

The networks have no skip connections. At PyTorch's initialization, the examples of a batch differ less from layer to
layer. All methods start from the same weights and see the same batches; `Trainer` is `LBETrainer` with `lbe_beta=0`.
Choose settings by the column `validation`: the test images are evaluated once, at the end. The script also takes all
`LBETrainingArguments`. It needs the extra `examples`.
"""

import copy
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from experiment import check_log, check_seed, draw_entropies, parse, train_classifier
from images import ImageArguments, Splits, load_images, standardize
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import set_seed

from lbe_hf import LBETrainingArguments

INITIALIZATIONS = ["default", "he", "delta_orthogonal"]
NORMALIZATIONS = ["none", "batch", "layer", "weight", "selu"]


@dataclass
class Arguments(ImageArguments, LBETrainingArguments):
    network: str = field(default="mlp", metadata={"help": "mlp or cnn.", "choices": ["mlp", "cnn"]})
    depth: int = field(default=50, metadata={"help": "Hidden layers."})
    width: int = field(default=128, metadata={"help": "Units (mlp) or filters (cnn) of a hidden layer."})
    dense: bool = field(default=False, metadata={"help": "Dense last hidden layer of the cnn, 2 units per pixel."})
    init: list[str] = field(
        default_factory=lambda: ["default"],
        metadata={"help": "default: PyTorch's; he, or LeCun's with selu; delta_orthogonal: a rival, cnn with tanh.",
                  "choices": INITIALIZATIONS},
    )  # fmt: skip
    normalizations: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "none: with and without the penalty; the others are its rivals.", "choices": NORMALIZATIONS},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One network per method and seed."})
    output_dir: str = "runs/plain_networks"
    num_train_epochs: float = 100
    learning_rate: float = 5e-4
    per_device_train_batch_size: int = 128
    per_device_eval_batch_size: int = 512
    lbe_beta: float = 0.5
    lbe_alpha: float = 1.0
    lbe_target_modules: str = r"hidden\.\d+"
    lbe_log_entropy: bool = True
    logging_strategy: str = "epoch"
    eval_strategy: str = "epoch"
    save_strategy: str = "no"


def defaults(given: Namespace) -> dict[str, Any]:
    """Defaults of the network; with `--paper`, those of section 4.3 and the authors' scripts.

    The authors try several values, of which one is the default here. Up to 50 layers: learning rates 3e-5, 5e-5 and
    1e-4, alpha 0.1, 0.3 and 0.5, beta 1e-4, 5e-4 and 1e-3. With normalization: learning rates 1e-4, 1e-5 and 5e-6. At
    500 layers they have a single setting, which is used here.
    """
    if not given.paper:
        cnn = {"depth": 20, "width": 8, "num_train_epochs": 30, "learning_rate": 2e-3}
        return cnn if given.network == "cnn" else {}
    common = {"data": "mnist", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "lbe_alpha_min": 0.2}
    deep = {"num_train_epochs": 1000, "lbe_alpha": 2.0, "lbe_beta": 0.1}
    if given.network == "cnn":
        own = {"depth": 500, "width": 8, "dense": True, "learning_rate": 1e-4, "per_device_train_batch_size": 256}
        penalty = {"lbe_alpha_min": 2.0, "lbe_target_modules": r"hidden\.(?!0$)\d+"}  # without the first
        return common | deep | own | penalty
    if given.depth < 3:
        sys.exit("error: with --paper give a --depth of 3 or more: the first and the last layer have no penalty.")
    common |= {"width": 1000, "lbe_layers": list(range(1, given.depth - 1))}  # without the first and the last
    if given.normalizations != ["none"]:
        rivals = {"num_train_epochs": 500, "learning_rate": 1e-5, "per_device_train_batch_size": 128, "lbe_beta": 0.0}
        return common | rivals
    if given.depth > 50:
        return common | deep | {"learning_rate": 1e-6, "per_device_train_batch_size": 128}
    shallow = {"num_train_epochs": 100, "learning_rate": 5e-5, "per_device_train_batch_size": 512}
    return common | shallow | {"lbe_alpha": 0.3, "lbe_beta": 5e-4}


class Method(NamedTuple):
    init: str
    normalization: str
    beta: float

    @property
    def trainer(self) -> str:
        return "LBETrainer" if self.beta else "Trainer"


def methods(args: Arguments) -> Iterator[Method]:
    """The methods to compare; the penalty is not combined with its rivals."""
    for init, normalization in product(args.init, args.normalizations):
        yield Method(init, normalization, 0.0)
        if args.lbe_beta and normalization == "none" and init != "delta_orthogonal":
            yield Method(init, normalization, args.lbe_beta)


class PlainNetwork(nn.Module):
    """Dense layers or 3x3 convolutions, each followed by its normalization and its activation, and a classifier.

    Args:
        shape: shape of an image, (channels, height, width).
        width: units of a dense layer, or filters of a convolution.
        dense: whether the last hidden layer of a "cnn" is dense, with two units per pixel.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        network: str = "mlp",
        depth: int = 50,
        width: int = 128,
        init: str = "default",
        normalization: str = "none",
        dense: bool = False,
    ) -> None:
        super().__init__()
        channels, pixels = shape[0], shape[1] * shape[2]
        activation = nn.SELU if normalization == "selu" else nn.Tanh if init == "delta_orthogonal" else nn.ReLU
        if network == "mlp":
            sizes = [channels * pixels] + [width] * depth
            layers = [[nn.Linear(*pair)] for pair in pairwise(sizes)]
        else:
            sizes = [channels] + [width] * (depth - dense)
            layers = [[nn.Conv2d(*pair, 3, padding=1)] for pair in pairwise(sizes)]
            sizes = [width * pixels]
        if network == "cnn" and dense:
            layers.append([nn.Flatten(), nn.Linear(width * pixels, 2 * pixels)])
            sizes = [2 * pixels]
        for layer in layers:
            layer += normalization_of(layer[-1], normalization)
        self.hidden = nn.Sequential(*(nn.Sequential(*layer, activation()) for layer in layers))
        self.classifier = nn.Linear(sizes[-1], classes)
        for module in self.modules():
            initialize(module, init, "linear" if normalization == "selu" else "relu")
        for module in self.hidden.modules() if normalization == "weight" else ():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                weight_norm(module)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        first = self.hidden[0][0]
        hidden = self.hidden(images.flatten(1) if isinstance(first, nn.Linear) else images)
        logits = self.classifier(hidden.flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def normalization_of(layer: nn.Module, kind: str) -> list[nn.Module]:
    if isinstance(layer, nn.Conv2d):
        kinds = {"batch": nn.BatchNorm2d, "layer": lambda filters: nn.GroupNorm(1, filters)}
        return [kinds[kind](layer.out_channels)] if kind in kinds else []
    kinds = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    return [kinds[kind](layer.out_features)] if kind in kinds else []


def initialize(module: nn.Module, init: str, nonlinearity: str) -> None:
    if init == "he" and isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity=nonlinearity)
        nn.init.zeros_(module.bias)
    if init == "delta_orthogonal" and isinstance(module, nn.Conv2d):  # Xiao et al., 2018, arXiv 1806.05393
        nn.init.zeros_(module.weight)
        nn.init.orthogonal_(module.weight[:, :, 1, 1])
        nn.init.zeros_(module.bias)


def train(args: Arguments, method: Method, splits: Splits) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Train a network; return its accuracies and the seconds of training, and the log history.

    Args:
        splits: standardized.
    """
    args = copy.copy(args)
    args.lbe_beta = method.beta
    set_seed(args.seed)
    shape = splits.train.images.shape[1:]
    sizes = (args.network, args.depth, args.width, method.init, method.normalization, args.dense)
    return train_classifier(PlainNetwork(shape, splits.classes, *sizes), args, splits)


def draw(histories: dict[str, Any], folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    curves = Figure(figsize=(5, 3.4), layout="constrained")
    axes = curves.subplots()
    styles = ("k:", "k-", "k-.", "k--", "C0-", "C1-", "C2-", "C3-", "C4-", "C5-")
    for index, (method, history) in enumerate(histories.items()):
        scores = pd.DataFrame(history).dropna(subset="eval_accuracy")
        axes.plot(scores["epoch"], scores["eval_accuracy"], styles[index % len(styles)], label=method)
    axes.set(xlabel="epoch", ylabel="validation accuracy (share of images)", ylim=(0, 1))
    curves.legend(loc="outside upper left", ncols=2, frameon=False, fontsize="small")
    curves.savefig(Path(folder, "accuracy.png"), dpi=150)
    draw_entropies(histories, folder)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Train all networks, draw the figures of the first seed, print the table, and return it."""
    args = parse(Arguments, defaults, argv)
    check_seed(args)
    check_log(args)
    if args.depth < 1:
        sys.exit("error: give a --depth of 1 or more.")
    if args.network == "mlp" and "delta_orthogonal" in args.init:
        sys.exit("error: delta_orthogonal initializes convolutions: add --network cnn.")
    splits, table, histories = standardize(load_images(args)), [], {}
    for method, seed in product(methods(args), args.seeds):
        args.seed = seed
        scores, history = train(args, method, splits)
        normalization = "" if method.normalization == "none" else f", {method.normalization}"
        histories.setdefault(f"{method.trainer}, {method.init} init{normalization}", history)
        columns = {"init": method.init, "normalization": method.normalization, "trainer": method.trainer}
        table.append({**columns, "seed": seed, **scores})
    draw(histories, args.output_dir)
    chance = splits.test.labels.bincount().max() / len(splits.test.labels)
    print(f"{args.depth} hidden layers of {args.width}, {args.num_train_epochs:g} epochs; chance is {chance:.2f}")
    print((results := pd.DataFrame(table)).round({"validation": 3, "test": 3, "seconds": 0}).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
