"""Watch a deep transformer collapse during training: `Trainer` with one callback.

    python examples/watch_training.py                          # writes a page and a figure to runs/watch_training
    python examples/watch_training.py --learning_rate 3e-4     # a rate at which it trains

The task: of twelve words from a vocabulary of forty, do most belong to the first twenty? At a learning rate of 2e-3,
the upper layers of a BERT of 24 layers collapse: they give the same activations for every example. The script also
takes all `TrainingArguments`. It needs the extra `plot`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import StackDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lbe_hf import InformationFlowCallback
from lbe_hf.figures import draw_flow_by_step


@dataclass
class Arguments(TrainingArguments):
    layers: int = field(default=24, metadata={"help": "Of 64 features each."})
    output_dir: str = "runs/watch_training"
    max_steps: int = 100
    learning_rate: float = 2e-3
    lr_scheduler_type: str = "constant"
    per_device_train_batch_size: int = 64
    logging_steps: float = 5
    save_strategy: str = "no"
    seed: int = 0


def main(argv: list[str] | None = None) -> InformationFlowCallback:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    args.logging_steps = min(args.logging_steps, args.max_steps)
    set_seed(args.seed)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": args.layers}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification(BertConfig(vocab_size=40, **sizes, **no_dropout))
    words = torch.randint(40, (args.max_steps * args.train_batch_size, 12))
    dataset = StackDataset(input_ids=words, labels=((words < 20).sum(1) > 6).long())
    callback = InformationFlowCallback()
    Trainer(model, args, train_dataset=dataset, callbacks=[callback]).train()
    draw_flow_by_step(callback.history).savefig(Path(args.output_dir, "information_flow.png"), dpi=150)
    print(*callback.history.verdict, f"{args.output_dir} has the page, the record and the figure.", sep="\n")
    return callback


if __name__ == "__main__":
    main()
