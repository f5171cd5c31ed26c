"""A plain ReLU network, far too deep to train, becomes trainable when only the penalty is added.

    python examples/deep_mlp.py                                      # 50 layers, scikit-learn's digits
    python examples/deep_mlp.py --init default he --seeds 0 1 2      # beside He initialization, and over seeds
    python examples/deep_mlp.py --data mnist --data_dir path/to/idx  # the files of MNIST or Fashion-MNIST

No skip connection, no normalization: at PyTorch's default initialization each layer lets less of a batch through than
the one before. Both trainers start from the same weights and see the same batches; `Trainer` is `LBETrainer` with
`lbe_beta=0`. Takes all of `LBETrainingArguments`, too; needs the extra `examples`. 500 layers: see README.md.
"""

import copy
import gzip
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import EvalPrediction, HfArgumentParser, ProgressCallback, set_seed

from lbe_hf import LBETrainer, LBETrainingArguments
from lbe_hf.figures import draw_entropy_by_step


@dataclass
class Arguments(LBETrainingArguments):
    depth: int = field(default=50, metadata={"help": "Hidden layers."})
    width: int = field(default=128, metadata={"help": "Units of a hidden layer."})
    init: list[str] = field(default_factory=lambda: ["default"], metadata={"help": "default, he or both."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One network each for every method."})
    data: str = field(default="digits", metadata={"help": "digits or mnist.", "choices": ["digits", "mnist"]})
    data_dir: str = field(default=".", metadata={"help": "Folder of the four IDX files, plain or .gz."})
    output_dir: str = "runs/deep_mlp"
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


class DeepMLP(nn.Module):
    def __init__(self, pixels: int, depth: int, width: int, init: str) -> None:
        super().__init__()
        sizes = [pixels] + [width] * depth
        layers = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(sizes)]
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, 10)
        for linear in self.modules() if init == "he" else ():
            if isinstance(linear, nn.Linear):
                nn.init.kaiming_normal_(linear.weight)
                nn.init.zeros_(linear.bias)

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(self.hidden(images.flatten(1)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def load_images(data: str, data_dir: str) -> tuple[StackDataset, StackDataset]:
    """Training and test images (1, H, W), standardized by one mean and deviation, with their labels."""
    if data == "digits":
        digits = load_digits()
        parts = train_test_split(digits.images, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    else:
        names = [f"{split}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1") for split in ("train", "t10k")]
        parts = [read_idx(Path(data_dir) / name) for name in names]
    train, test, *labels = (torch.tensor(part) for part in parts)
    images = [(x.float() - train.float().mean()) / train.float().std() for x in (train, test)]
    return tuple(StackDataset(images=x[:, None], labels=y.long()) for x, y in zip(images, labels, strict=True))


def read_idx(path: Path) -> np.ndarray:
    """Bytes of an IDX file, plain or .gz: two zeros, the type, the number of dimensions, each of them, the data."""
    packed = path.with_name(f"{path.name}.gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    start = 4 + 4 * content[3]
    return np.frombuffer(content, np.uint8, offset=start).reshape(np.frombuffer(content[4:start], ">u4"))


def accuracy_of(outputs: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((outputs.predictions.argmax(-1) == outputs.label_ids).mean())}


class Progress(ProgressCallback):
    """The bar with the test accuracy, without a line of log for each epoch."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "eval_accuracy" in logs:
            self.training_bar.set_postfix(accuracy=f"{logs['eval_accuracy']:.3f}")


def train(args: Arguments, init: str, rows: tuple[StackDataset, StackDataset]) -> list[dict[str, float]]:
    set_seed(args.seed)
    model = DeepMLP(rows[0][0]["images"].numel(), args.depth, args.width, init)
    trainer = LBETrainer(model, args, train_dataset=rows[0], eval_dataset=rows[1], compute_metrics=accuracy_of)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    trainer.train()
    return trainer.state.log_history


def draw(histories: dict[str, Any], folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    curves, maps = (Figure(figsize=(width, 3.4), layout="constrained") for width in (5, 1.5 + 3 * len(histories)))
    axes, panels = curves.subplots(), maps.subplots(1, len(histories), sharey=True)
    for (method, history), style, panel in zip(histories.items(), ("k:", "k-", "k-.", "k--"), panels, strict=False):
        scores = pd.DataFrame(history).dropna(subset="eval_accuracy")
        axes.plot(scores["epoch"], scores["eval_accuracy"], style, label=method)
        image = draw_entropy_by_step(panel, history, highest=2)
        panel.set_title(method, fontsize="medium")
        panel.label_outer()
    axes.set(xlabel="epoch", ylabel="test accuracy (share of images)", ylim=(0, 1))
    curves.legend(loc="outside upper left", ncols=2, frameon=False, fontsize="small")
    maps.colorbar(image, ax=panels, label="batch entropy (nats)", extend="max")
    curves.savefig(Path(folder, "accuracy.png"), dpi=150)
    maps.savefig(Path(folder, "entropy.png"), dpi=150)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Trains every network, prints the table, draws the first seed, and returns the table."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    rows, table, histories = load_images(args.data, args.data_dir), [], {}
    for init, beta, seed in product(args.init, (0.0, args.lbe_beta), args.seeds):
        args.lbe_beta, args.seed, trainer = beta, seed, "LBETrainer" if beta else "Trainer"
        history = train(copy.copy(args), init, rows)
        histories.setdefault(f"{trainer}, {init} init", history)
        scores = {"accuracy": history[-2]["eval_accuracy"], "seconds": history[-1]["train_runtime"]}
        table.append({"init": init, "trainer": trainer, "seed": seed, **scores})
    draw(histories, args.output_dir)
    print(f"{args.depth} hidden layers of {args.width}, {args.num_train_epochs:g} epochs; chance is 0.1")
    print((results := pd.DataFrame(table)).round({"accuracy": 3, "seconds": 0}).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
