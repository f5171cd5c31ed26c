"""Fine-tune one encoder on one GLUE task with `LBETrainer`: `python -m glue_runs.finetune --help`."""

from __future__ import annotations

import os
import sys

from datasets import DatasetDict
from transformers import DataCollatorWithPadding, set_seed
from transformers.trainer_utils import get_last_checkpoint

from lbe_hf import LBETrainer

from .arguments import DataArguments, FinetuneArguments, ModelArguments, parse
from .data import load_splits, tokenize
from .encoder import load_encoder
from .metrics import compute_metrics_for
from .tasks import InputError, get_task


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
