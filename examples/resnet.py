"""The penalty on the blocks of a residual network, `ResNetForImageClassification` of Transformers, trained with SGD.

    python examples/resnet.py                                       # 20 layers, scikit-learn's digits
    python examples/resnet.py --activations hidden_states           # the hidden states of the model: one per stage
    python examples/resnet.py --paper --data_dir path/to/cifar10    # section 4.5: 74 layers
    python examples/resnet.py --paper --data folder --data_dir path/to/imagenet100

The weights are random; activations have the shape (B, C, H, W). Thanks to skip connections and batch normalization, no
layer collapses without the penalty either; it only changes the entropy of the blocks. Choose settings by the column
`validation`: the test images are evaluated once, at the end. `Trainer` is `LBETrainer` with `lbe_beta=0`. The script
also takes all `LBETrainingArguments`. It needs the extra `examples`.
"""

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from experiment import check_log, check_seed, draw_entropies, methods_and_seeds, parse, train_classifier
from images import ImageArguments, Splits, load_images, standardize
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, set_seed

from lbe_hf import LBETrainingArguments
from lbe_hf.log_lines import by_layer


@dataclass
class Arguments(ImageArguments, LBETrainingArguments):
    blocks: int = field(default=3, metadata={"help": "Residual blocks in each of the three stages."})
    stem: str = field(
        default="imagenet",
        metadata={"help": "imagenet: 7x7 convolution and pooling, a quarter of the size; cifar: 3x3 convolution.",
                  "choices": ["imagenet", "cifar"]},
    )  # fmt: skip
    activations: str = field(
        default="blocks", metadata={"help": "What to regularize.", "choices": ["blocks", "hidden_states"]}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "One network per method and seed."})
    output_dir: str = "runs/resnet"
    num_train_epochs: float = 10
    optim: str = "sgd"
    learning_rate: float = 0.1
    lr_scheduler_type: str = "reduce_lr_on_plateau"
    weight_decay: float = 1e-4
    max_grad_norm: float = 0.0
    per_device_train_batch_size: int = 128
    per_device_eval_batch_size: int = 512
    lbe_beta: float = 1.0
    lbe_alpha: float = 1.0
    lbe_target_modules: str | None = r".*\.stages\.\d+\.layers\.\d+"
    lbe_log_entropy: bool = True
    logging_strategy: str = "epoch"
    eval_strategy: str = "epoch"
    save_strategy: str = "no"


def defaults(given: Namespace) -> dict[str, Any]:
    """Settings of SGD and its schedule; with `--paper`, section 4.5 and the authors' scripts.

    The authors try alpha 0.5, 1.0 and 1.5, with targets that start 0.2 above, and beta 0.001, 0.005 and 0.01. They
    learn the targets with the same SGD; here Adam learns them at a rate that moves them about as far. With folders of
    images, the stem is that for ImageNet.
    """
    own: dict[str, Any] = {}
    if given.optim == Arguments.optim:
        # Adam learns the targets, and would move them by SGD's full learning rate in every step.
        own |= {"optim_args": "momentum=0.9,nesterov=true", "lbe_alpha_learning_rate": 1e-3}
    if given.lr_scheduler_type == Arguments.lr_scheduler_type:
        own["lr_scheduler_kwargs"] = {"factor": 0.1, "patience": 10 if given.paper else 2}
    if not given.paper:
        return own
    training = {"data": "cifar10", "blocks": 12, "per_device_train_batch_size": 256, "num_train_epochs": 100}
    penalty = {"lbe_alpha": 1.2, "lbe_alpha_min": 1.0, "lbe_beta": 0.005, "lbe_alpha_learning_rate": 1e-4}
    stem = {"stem": "imagenet" if given.data == "folder" else "cifar"}
    return own | training | penalty | stem


def at_least_32(images: Tensor) -> Tensor:
    """Enlarge smaller images to 32 x 32."""
    return images if images.shape[-1] >= 32 else nn.functional.interpolate(images, (32, 32), mode="bilinear")


def network(args: Arguments, channels: int, classes: int) -> ResNetForImageClassification:
    """A model with random weights, drawn with the seed of the arguments."""
    set_seed(args.seed)
    shape = {"hidden_sizes": [16, 32, 64], "depths": [args.blocks] * 3, "embedding_size": 16, "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(num_channels=channels, num_labels=classes, **shape))
    if args.stem == "cifar":
        stem = model.resnet.embedder
        stem.embedder.convolution = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.embedder.convolution.weight, mode="fan_out", nonlinearity="relu")
        stem.pooler = nn.Identity()
    return model


def train(args: Arguments, splits: Splits) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Train a network; return its accuracies and the seconds of training, and the log history.

    Args:
        splits: standardized, of at least 32 x 32 pixels.
    """
    model = network(args, splits.train.images.shape[1], splits.classes)
    return train_classifier(model, args, splits, "pixel_values")


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Train all networks, draw the entropies of the first seed, print the table, and return it."""
    args = parse(Arguments, defaults, argv)
    check_seed(args)
    check_log(args)
    args.lbe_target_modules = args.lbe_target_modules if args.activations == "blocks" else None
    splits, table, histories = standardize(load_images(args)).map_images(at_least_32), [], {}
    for trainer, run in methods_and_seeds(args):
        scores, history = train(run, splits)
        histories.setdefault(trainer, history)
        entropies = [values for line in history if (values := by_layer(line, "entropy"))][-1]
        extremes = {"lowest": min(entropies), "highest": max(entropies)}
        table.append({"trainer": trainer, "seed": run.seed, **scores, **extremes})
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    draw_entropies(histories, args.output_dir)
    print(
        f"{3 * args.blocks} blocks, {args.num_train_epochs:g} epochs; batch entropy in nats, target {args.lbe_alpha:g}"
    )
    print((results := pd.DataFrame(table)).round(3).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
