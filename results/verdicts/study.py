"""The accuracy of the verdicts: false alarms on healthy models, hits on broken ones.

    GLUE_DATA_DIR=path/to/glue python results/verdicts/study.py     # about an hour on one core; writes both CSV files
    python results/verdicts/report.py                               # the tables of README.md

Healthy: the architectures of the tests at initialization, three seeds each; deeper and other networks; MiniLM on RTE,
MRPC and CoLA before and after fine-tuning. Broken: each fault planted in a BERT, a Llama, a ViT and an MLP of six
layers, in the first, the middle and the last one. Needs the extra `test`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))

import families  # noqa: E402
import tiny  # noqa: E402

from glue_runs.finetune import command as finetune  # noqa: E402
from glue_runs.finetune.encoder import load_model, load_tokenizer  # noqa: E402
from glue_runs.finetune.run import tokenized_examples  # noqa: E402
from glue_runs.tasks.data import split  # noqa: E402
from glue_runs.tasks.glue import get_task  # noqa: E402
from lbe_hf import InformationFlow, information_flow  # noqa: E402

EXAMPLES, LAYERS = 32, 6
SIZES = {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 128}


class MLP(nn.Module):
    """ReLU layers on vectors of 64 features, with He's initialization."""

    def __init__(self, depth: int = LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(depth)])
        self.classifier = nn.Linear(64, 10)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer[0].weight)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


# ---- healthy -------------------------------------------------------------------------------------------------------


def healthy() -> Iterator[tuple[str, str, InformationFlow]]:
    """Group, name and information flow of each healthy model."""
    for family in families.FAMILIES:
        for seed in range(3):
            examples = tiny.batch(families.rows_for(family, EXAMPLES, seed))
            yield (
                "initialized",
                f"{family}, seed {seed}",
                information_flow(families.model_for(family, seed), [examples]),
            )
    torch.manual_seed(0)
    llama = LlamaForSequenceClassification(
        LlamaConfig(**SIZES, vocab_size=40, initializer_range=0.005, pad_token_id=0)
    )
    yield "initialized", "Llama, initializer_range 0.005", information_flow(llama, [texts()])
    deep = BertForSequenceClassification(BertConfig(**{**SIZES, "num_hidden_layers": 48}, vocab_size=40))
    yield "initialized", "BERT of 48 layers", information_flow(deep, [texts()])
    resnet = ResNetForImageClassification(ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2]))
    yield "initialized", "ResNet", information_flow(resnet, [images()])
    speech = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**SIZES, conv_dim=[32] * 7, num_feat_extract_layers=7))
    yield "initialized", "Wav2Vec2", information_flow(speech, [{"input_values": torch.randn(8, 4000)}])
    for depth in (6, 20, 50):
        yield "initialized", f"MLP of {depth} layers, He", information_flow(MLP(depth), [vectors()])
    yield "trained", "MLP of 6 layers, digits", information_flow(trained_on_digits(), [digits()])
    for task_name in ("rte", "mrpc", "cola"):
        yield from minilm(task_name)


def minilm(task_name: str) -> Iterator[tuple[str, str, InformationFlow]]:
    """MiniLM on validation examples, before and after fine-tuning with the default settings of `glue_runs`."""
    task, data_dir = get_task(task_name), os.environ["GLUE_DATA_DIR"]
    examples = split(tokenized_examples(task_name, "minilm", data_dir, 128, False), task)["validation"]
    examples = examples.select_columns(["input_ids", "token_type_ids", "attention_mask"])
    loader = DataLoader(examples, EXAMPLES, collate_fn=DataCollatorWithPadding(load_tokenizer("minilm")))
    yield "pretrained", f"MiniLM, {task_name}", information_flow(load_model("minilm", task), loader)
    for learning_rate, beta in (("5e-5", "0"), ("5e-5", "0.05")):
        with TemporaryDirectory() as folder:
            settings = ["--learning_rate", learning_rate, "--lbe_beta", beta, "--num_train_epochs", "2"]
            common = ["--task_name", task_name, "--model_name_or_path", "minilm", "--data_dir", data_dir]
            finetune.main([*common, *settings, "--precision", "fp32", "--seed", "41", "--output_dir", folder])
            model = AutoModelForSequenceClassification.from_pretrained(folder)
        name = f"MiniLM, {task_name}, fine-tuned, beta {beta}"
        yield "fine-tuned", name, information_flow(model, loader)


def trained_on_digits() -> MLP:
    torch.manual_seed(0)
    model = MLP()
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(300):
        chosen = torch.randint(len(images), (128,))
        loss = nn.functional.cross_entropy(model(images[chosen].float() / 16), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def digits() -> dict[str, Tensor]:
    return {"x": torch.tensor(load_digits().data[:EXAMPLES]).float() / 16}


# ---- broken --------------------------------------------------------------------------------------------------------


def texts() -> dict[str, Tensor]:
    words = torch.randint(4, 40, (EXAMPLES, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(EXAMPLES, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def vectors() -> dict[str, Tensor]:
    return {"x": torch.randn(EXAMPLES, 64, generator=torch.Generator().manual_seed(0))}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]]]] = {
    "BERT": (lambda: BertForSequenceClassification(BertConfig(**SIZES, vocab_size=40)), texts),
    "Llama": (lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, vocab_size=40, pad_token_id=0)), texts),
    "ViT": (lambda: ViTForImageClassification(ViTConfig(**SIZES, image_size=32, patch_size=8)), images),
    "MLP": (MLP, vectors),
}
HEADS = {"BERT": "bert.pooler.dense", "Llama": "score", "ViT": "classifier", "MLP": "classifier"}


def blocks(model: nn.Module) -> nn.ModuleList:
    """The six layers of any of the models."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == LAYERS)


def with_output(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    """Change the output of a layer."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return lambda layer: layer.register_forward_hook(hook)  # type: ignore[return-value]


def cone(x: Tensor) -> Tensor:
    """Add a common vector, so long that two examples have a cosine similarity of 0.986."""
    centred = x - x.mean(0)
    size = (centred.square().mean() * 0.986 / 0.014).sqrt()
    return centred + size * torch.ones_like(x[:1]) * torch.linspace(-1.7, 1.7, x.shape[-1])


def one_direction(x: Tensor) -> Tensor:
    """Project the deviations of the examples onto that of the first."""
    mean = x.mean(0, keepdim=True)
    flat = (x - mean).flatten(1)
    direction = flat[:1] / flat[:1].norm()
    return mean + (flat @ direction.T @ direction).view_as(x)


@torch.no_grad()
def zero_weights(layer: nn.Module) -> None:
    """Set the weights of the layer's last linear module to zero."""
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear)][-1]
    linear.weight.zero_()
    if linear.bias is not None:
        linear.bias.zero_()


@torch.no_grad()
def nan_weights(layer: nn.Module) -> None:
    next(module for module in layer.modules() if isinstance(module, nn.Linear)).weight[0, 0] = float("nan")


FAULTS: dict[str, tuple[Callable[[nn.Module], None], tuple[str, ...]]] = {
    "NaN in a weight": (nan_weights, ("nonfinite",)),
    "constant output": (with_output(lambda x: x.mean(0, keepdim=True).expand_as(x)), ("collapsed",)),
    "cosine 0.986": (with_output(cone), ("cone",)),
    "one direction": (with_output(one_direction), ("redundant",)),
    "zeroed weights": (zero_weights, ("dead_units", "collapsed")),
}


def broken() -> Iterator[tuple[str, str, str, tuple[str, ...], InformationFlow]]:
    """Model, fault, its position, the kinds of findings that name it, and information flow."""
    for name, (build, inputs) in MODELS.items():
        for fault, (plant, kinds) in FAULTS.items():
            for index in (0, LAYERS // 2, LAYERS - 1):
                torch.manual_seed(0)
                model = build()
                plant(blocks(model)[index])
                yield name, fault, f"layer {index + 1} of {LAYERS}", kinds, information_flow(model, [inputs()])
        torch.manual_seed(0)
        model = build()
        zero_weights(model.get_submodule(HEADS[name]))
        yield name, "zeroed weights", HEADS[name], ("dead_units", "collapsed"), information_flow(model, [inputs()])
        alike = {key: value[:1].expand_as(value) for key, value in inputs().items()}
        yield name, "examples all alike", "data", ("data",), information_flow(build(), [alike])
        if "attention_mask" in alike:
            padded = {**inputs(), "attention_mask": torch.zeros_like(inputs()["attention_mask"])}
            yield name, "all padding", "data", ("data",), information_flow(build(), [padded])


def main() -> None:
    if "GLUE_DATA_DIR" not in os.environ:
        sys.exit("error: set GLUE_DATA_DIR to the folder with the official files: GLUE_DATA_DIR/CoLA/train.tsv etc.")
    lines: list[dict[str, Any]] = []
    for model, fault, where, kinds, flow in broken():
        hit = any(finding.kind in kinds for finding in flow.findings)
        first = flow.findings[0] if flow.findings else None
        found = {"hit": hit, "found": first.kind if first else "", "layer": first.layer if first else ""}
        lines.append({"model": model, "fault": fault, "where": where, **found})
    pd.DataFrame(lines).to_csv(HERE / "broken.csv", index=False)
    print(pd.DataFrame(lines).to_string())
    lines = []
    for group, model, flow in healthy():
        shares = [layer.variance_share for layer in flow.layers]
        statistics = {
            "lowest_variance_share": min(shares),
            "variance_share_last": shares[-1],
            "effective_rank_last": flow.layers[-1].effective_rank,
            "dead_units": max(part.dead_units for part in (*flow.layers, *flow.modules)),
        }
        kinds = " ".join(finding.kind for finding in flow.findings)
        lines.append(
            {"group": group, "model": model, "false_alarm": not flow.is_healthy, "found": kinds, **statistics}
        )
        print(lines[-1], flush=True)
        pd.DataFrame(lines).round(4).to_csv(HERE / "healthy.csv", index=False)


if __name__ == "__main__":
    main()
