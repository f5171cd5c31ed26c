"""Whether a deep BERT trains from scratch depends on its seed; the penalty makes it more likely.

    python examples/deep_bert.py                                               # 48 layers
    python examples/deep_bert.py --warmup_steps 14                             # does a warm-up do as well?
    python examples/deep_bert.py --model_type roberta-prelayernorm             # does pre-layer normalization?
    python examples/deep_bert.py --lr_scheduler_type constant --max_steps 400  # as in results/deep_bert

The task: of twelve words from a vocabulary of forty, do most belong to the first twenty? A shallow transformer learns
it in a hundred steps. In a deep one, the upper layers collapse: they give the same output for every sequence and do
not recover. Both methods start from the same weights and see the same batches, and no example is repeated. `Trainer`
is `LBETrainer` with `lbe_beta=0`. The script also takes all `LBETrainingArguments`. It needs the extra `plot`.
"""

import copy
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset, StackDataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    HfArgumentParser,
    PreTrainedModel,
    ProgressCallback,
    set_seed,
)

from lbe_hf import LBETrainer, LBETrainingArguments
from lbe_hf.figures import draw_entropy_by_step

WORDS, LENGTH = 40, 12
History = list[dict[str, float]]


@dataclass
class Arguments(LBETrainingArguments):
    depth: int = field(default=48, metadata={"help": "Layers, of 64 features each."})
    model_type: str = field(default="bert", metadata={"help": "A text encoder, such as bert or roberta-prelayernorm."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One model per method and seed."})
    output_dir: str = "runs/deep_bert"
    max_steps: int = 140
    learning_rate: float = 1e-3
    per_device_train_batch_size: int = 64
    lbe_beta: float = 0.5
    lbe_alpha: float = 0.7
    lbe_log_entropy: bool = True
    logging_steps: float = 20
    save_strategy: str = "no"


class AccuracyTrainer(LBETrainer):
    """Logs the training accuracy, measured on each batch before its step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hits: list[Tensor] = []

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels = inputs["labels"]  # which label smoothing removes
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.hits.append((outputs["logits"].argmax(-1) == labels).float().mean())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs["accuracy"] = torch.stack(self.hits).mean().item()
            self.hits = []
        super().log(logs, *args, **kwargs)


class Progress(ProgressCallback):
    """A progress bar that shows the accuracy instead of printing log lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "accuracy" in logs:
            self.training_bar.set_postfix(accuracy=f"{logs['accuracy']:.3f}")


def sentences(count: int, seed: int) -> StackDataset:
    words = torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return StackDataset(input_ids=words, labels=((words < WORDS // 2).sum(1) > LENGTH // 2).long())


def network(args: Arguments, words: int = WORDS, labels: int = 2) -> PreTrainedModel:
    """A model with random weights, drawn with the seed of the arguments."""
    set_seed(args.seed)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": args.depth}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model(args.model_type, vocab_size=words, num_labels=labels, **sizes, **no_dropout)
    return AutoModelForSequenceClassification.from_config(config)


def trainer_for(args: Arguments, examples: Dataset, model: PreTrainedModel) -> AccuracyTrainer:
    trainer = AccuracyTrainer(model, args, train_dataset=examples)
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress)
    return trainer


def train(args: Arguments, examples: Dataset, model: PreTrainedModel) -> AccuracyTrainer:
    trainer = trainer_for(args, examples, model)
    trainer.train()
    return trainer


def summary(history: History) -> dict[str, float]:
    """Of the last log line: the accuracy, and the lowest batch entropy of all layers, in nats."""
    last = [line for line in history if "accuracy" in line][-1]
    return {"accuracy": last["accuracy"], "lowest_entropy": last["entropy_min"]}


def draw(histories: dict[str, list[History]], folder: str) -> None:
    """Draw accuracy by step, one line per seed, and entropy by layer and step for the median seed of each method."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    curves, maps = (Figure(figsize=(7.5, 3.2), layout="constrained") for _ in range(2))
    columns = zip(histories.items(), curves.subplots(1, 2, sharey=True), maps.subplots(1, 2, sharey=True), strict=True)
    for (trainer, runs), axes, panel in columns:
        for lines in (pd.DataFrame(history).dropna(subset="accuracy") for history in runs):
            axes.plot(lines["step"], lines["accuracy"], "k-", linewidth=1)
        axes.set(title=trainer, xlabel="training step", ylabel="accuracy", ylim=(0.5, 1.01))
        median = sorted(runs, key=lambda history: summary(history)["accuracy"])[(len(runs) - 1) // 2]
        image = draw_entropy_by_step(panel, median, highest=1)
        panel.set_title(f"{trainer}, accuracy {summary(median)['accuracy']:.2f}")
        panel.label_outer()
    maps.colorbar(image, ax=maps.axes, label="batch entropy (nats)", extend="max")
    curves.savefig(Path(folder, "accuracy.png"), dpi=150)
    maps.savefig(Path(folder, "entropy.png"), dpi=150)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Train all models, draw the figures, print a summary by method, and return a table with one row per model."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    if args.seed != Arguments.seed or args.logging_strategy != "steps":
        sys.exit("error: give --seeds instead of --seed, and leave out --logging_strategy: the figures need the log.")
    args.logging_steps = min(args.logging_steps, args.max_steps)
    table, histories = [], defaultdict(list)
    for seed, (trainer, beta) in product(args.seeds, {"Trainer": 0.0, "LBETrainer": args.lbe_beta}.items()):
        args.seed, args.lbe_beta = seed, beta
        examples = sentences(args.max_steps * args.gradient_accumulation_steps * args.train_batch_size, seed)
        history = train(copy.copy(args), examples, network(args)).state.log_history
        histories[trainer].append(history)
        table.append({"trainer": trainer, "seed": seed, **summary(history)})
    draw(histories, args.output_dir)
    results = pd.DataFrame(table)
    methods = results.round(2).groupby("trainer", sort=False).agg(list)
    trained = (results["accuracy"] > 0.95).groupby(results["trainer"], sort=False)
    methods["trained"] = [f"{own.sum()} of {len(own)}" for _, own in trained]
    print(f"{args.depth} layers, learning rate {args.learning_rate:g}; trained is a last accuracy above 0.95")
    print(methods.reset_index().to_string(index=False))
    return results


if __name__ == "__main__":
    main()
