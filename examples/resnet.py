"""The penalty on the blocks of a residual network, Transformers' own `ResNetForImageClassification`.

    python examples/resnet.py                                      # 20 layers, scikit-learn's digits
    python examples/resnet.py --activations hidden_states          # what the model itself returns: one a stage
    python examples/resnet.py --data mnist --data_dir path/to/idx  # the files of MNIST or Fashion-MNIST

Weights are random, activations (B, C, H, W). Skip connections and batch normalization carry a batch through this
network without the penalty, too: what changes is how much of it. `Trainer` is `LBETrainer` with `lbe_beta=0`. Takes
every argument of `LBETrainingArguments`, too; needs the extra `examples`.
"""

import copy
import gzip
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import StackDataset
from transformers import (
    EvalPrediction,
    HfArgumentParser,
    ProgressCallback,
    ResNetConfig,
    ResNetForImageClassification,
    set_seed,
)

from lbe_hf import LBETrainer, LBETrainingArguments
from lbe_hf.figures import draw_entropy_by_step


@dataclass
class Arguments(LBETrainingArguments):
    blocks: int = field(default=3, metadata={"help": "Residual blocks in each of the three stages."})
    activations: str = field(default="blocks", metadata={"help": "What is measured: blocks or hidden_states."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One network each for every method."})
    data: str = field(default="digits", metadata={"help": "digits or mnist.", "choices": ["digits", "mnist"]})
    data_dir: str = field(default=".", metadata={"help": "Folder of the four IDX files, plain or .gz."})
    output_dir: str = "runs/resnet"
    num_train_epochs: float = 10
    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 128
    per_device_eval_batch_size: int = 512
    lbe_beta: float = 1.0
    lbe_alpha: float = 1.0
    lbe_target_modules: str | None = r".*\.stages\.\d+\.layers\.\d+"
    lbe_log_entropy: bool = True
    logging_strategy: str = "epoch"
    eval_strategy: str = "epoch"
    save_strategy: str = "no"


def load_images(data: str, data_dir: str) -> tuple[StackDataset, StackDataset]:
    """Training and test images (1, 32, 32), standardized by one mean and deviation, with their labels."""
    if data == "digits":
        digits = load_digits()
        parts = train_test_split(digits.images, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    else:
        names = [f"{split}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1") for split in ("train", "t10k")]
        parts = [read_idx(Path(data_dir) / name) for name in names]
    train, test, *labels = (torch.tensor(part) for part in parts)
    images = [(x.float() - train.float().mean()) / train.float().std() for x in (train, test)]
    images = [nn.functional.interpolate(x[:, None], (32, 32), mode="bilinear") for x in images]
    return tuple(StackDataset(pixel_values=x, labels=y.long()) for x, y in zip(images, labels, strict=True))


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


def train(args: Arguments, rows: tuple[StackDataset, StackDataset]) -> list[dict[str, float]]:
    set_seed(args.seed)
    shape = {"hidden_sizes": [16, 32, 64], "depths": [args.blocks] * 3, "embedding_size": 16, "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **shape))
    trainer = LBETrainer(model, args, train_dataset=rows[0], eval_dataset=rows[1], compute_metrics=accuracy_of)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress)
    trainer.train()
    return trainer.state.log_history


def draw(histories: dict[str, Any], folder: str) -> None:
    figure = Figure(figsize=(1.5 + 3 * len(histories), 3.4), layout="constrained")
    panels = figure.subplots(1, len(histories), sharey=True)
    for (method, history), panel in zip(histories.items(), panels, strict=True):
        image = draw_entropy_by_step(panel, history, highest=2)
        panel.set_title(method, fontsize="medium")
        panel.label_outer()
    figure.colorbar(image, ax=panels, label="batch entropy (nats)", extend="max")
    figure.savefig(f"{folder}/entropy.png", dpi=150)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Trains every network, prints the table, draws the first seed, and returns the table."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    args.lbe_target_modules = args.lbe_target_modules if args.activations == "blocks" else None
    rows, table, histories = load_images(args.data, args.data_dir), [], {}
    for beta, seed in product((0.0, args.lbe_beta), args.seeds):
        run, trainer = copy.copy(args), "LBETrainer" if beta else "Trainer"
        run.lbe_beta, run.seed = beta, seed
        history = train(run, rows)
        histories.setdefault(trainer, history)
        last = [value for key, value in history[-3].items() if key.startswith("entropy/")]
        scores = {"accuracy": history[-2]["eval_accuracy"], "seconds": history[-1]["train_runtime"]}
        table.append({"trainer": trainer, "seed": seed, **scores, "lowest": min(last), "highest": max(last)})
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    draw(histories, args.output_dir)
    print(
        f"{3 * args.blocks} blocks, {args.num_train_epochs:g} epochs; batch entropy in nats, target {args.lbe_alpha:g}"
    )
    print((results := pd.DataFrame(table)).round(3).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
