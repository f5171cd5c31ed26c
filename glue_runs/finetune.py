"""Fine-tune one encoder on one GLUE task with `LBETrainer`: `python -m glue_runs.finetune --help`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import NoReturn

from datasets import DatasetDict
from transformers import DataCollatorWithPadding, HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from lbe_hf import LBETrainer, LBETrainingArguments

from .data import load_splits, tokenize
from .encoder import load_encoder
from .metrics import compute_metrics_for
from .tasks import TASKS, InputError, get_task


@dataclass
class ModelArguments:
    """Which encoder."""

    model_name_or_path: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "Name on the Hub or local path; 'minilm' is the encoder of the [demo] extra."},
    )


@dataclass
class DataArguments:
    """Which rows, and how long."""

    task_name: str = field(metadata={"help": f"One of {', '.join(TASKS)}; demo_rte is generated."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with the official files, as in RTE/train.tsv. Default: nyu-mll/glue on the Hub."},
    )
    max_length: int = field(default=128, metadata={"help": "Tokens at which a row is cut."})
    validation_fraction: float = field(
        default=0.2, metadata={"help": "Share of the training set that is split off for validation."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of that split; the runs of one study share it."})


@dataclass
class FinetuneArguments(LBETrainingArguments):
    """`LBETrainingArguments` with the paper's values as defaults."""

    output_dir: str = field(default="out", metadata={"help": "Folder for checkpoints, model and metrics."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate; the paper: 1e-5, 3e-5, 5e-5."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the training set."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows a device and micro-batch."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows a device in evaluation."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint to resume from."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints that are kept."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log lines."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Checkpoint folder to go on from, or 'last' for the last one in output_dir."}
    )


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, where argparse would print the usage of some 150 arguments before it."""
        self.exit(2, f"error: {message} (see --help)\n")


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, FinetuneArguments]:
    """Arguments from the command line, or from one JSON or YAML file whose path is the only argument."""
    parser = _Parser((ModelArguments, DataArguments, FinetuneArguments), prog="python -m glue_runs.finetune")
    try:
        if len(argv) == 1 and argv[0].endswith(".json"):
            return parser.parse_json_file(argv[0])
        if len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
            return parser.parse_yaml_file(argv[0])
        return parser.parse_args_into_dataclasses(argv)
    except OSError as error:
        raise InputError(f"{argv[0]} cannot be read ({error.strerror}).") from error


def prepare(
    model_args: ModelArguments, data_args: DataArguments, args: FinetuneArguments
) -> tuple[LBETrainer, DatasetDict]:
    """Everything up to the first training step: the trainer, and the tokenized `train`, `validation` and `test` rows.

    Raises:
        ValueError: something in the arguments or the data cannot be run.
    """
    task = get_task(data_args.task_name)
    if args.resume_from_checkpoint == "last":
        args.resume_from_checkpoint = get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
        if args.resume_from_checkpoint is None:
            raise InputError(f"{args.output_dir} has no checkpoint: start without --resume_from_checkpoint.")
    elif args.resume_from_checkpoint is not None and not os.path.isdir(args.resume_from_checkpoint):
        raise InputError(f"{args.resume_from_checkpoint} is not a checkpoint folder.")
    set_seed(args.seed)  # the classification head is drawn here
    with args.main_process_first(desc="tokenization"):
        splits = load_splits(task, data_args.data_dir, data_args.validation_fraction, data_args.split_seed)
        model, tokenizer = load_encoder(model_args.model_name_or_path, task)
        splits = tokenize(splits, task, tokenizer, data_args.max_length)
    trainer = LBETrainer(
        model=model,
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        compute_metrics=compute_metrics_for(task),
    )
    return trainer, splits


def run(trainer: LBETrainer, splits: DatasetDict) -> dict[str, float]:
    """Train, save the model, and evaluate it on the validation and the test rows."""
    trained = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    metrics = {"train_runtime": trained.metrics["train_runtime"]}
    for split in ("validation", "test"):
        metrics |= trainer.evaluate(splits[split], metric_key_prefix=split)
    trainer.save_metrics("all", metrics, combined=False)
    return metrics


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error for input that cannot be run."""
    try:
        model_args, data_args, args = parse(sys.argv[1:] if argv is None else argv)
        trainer, splits = prepare(model_args, data_args, args)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    metrics = run(trainer, splits)
    if trainer.is_world_process_zero():
        task = get_task(data_args.task_name)
        print(f"\n{task.name}, {model_args.model_name_or_path}, lbe_beta {args.lbe_beta}, seed {args.seed}")
        for split in ("validation", "test"):
            scores = ", ".join(f"{name} {metrics[f'{split}_{name}']:.4f}" for name in ("loss", *task.metrics))
            print(f"{split:>10}: {scores}")
        print(f"{'training':>10}: {metrics['train_runtime']:.0f} seconds; model saved to {args.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
