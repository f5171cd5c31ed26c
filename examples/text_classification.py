"""Fine-tune a text classifier with the penalty: an ordinary script of Transformers with two names swapped.

    python examples/text_classification.py                                 # offline, in less than a minute
    python examples/text_classification.py --csv mine.csv --model google-bert/bert-base-uncased --learning_rate 3e-5

Without a CSV file, the model learns whether generated sentences are grammatical. A fifth of the examples is used for
evaluation. The script also takes all `LBETrainingArguments`. It needs the extra `demo`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction, HfArgumentParser, set_seed

from glue_runs.finetune.encoder import locate
from glue_runs.tasks.grammar import generate
from lbe_hf import InformationFlowCallback, LBETrainer, LBETrainingArguments  # not: Trainer, TrainingArguments


@dataclass
class Arguments(LBETrainingArguments):
    csv: str | None = field(default=None, metadata={"help": "A file with a column `label` and one or two of text."})
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "One or two columns. Default: the only column of text beside `label`."}
    )
    model: str = field(default="minilm", metadata={"help": "Name or folder; minilm comes with the extra demo."})
    output_dir: str = "runs/text_classification"
    num_train_epochs: float = 2
    learning_rate: float = 2e-4
    lbe_beta: float = 0.5
    per_device_train_batch_size: int = 16
    eval_strategy: str = "epoch"
    save_strategy: str = "no"
    logging_steps: float = 10


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(argv: list[str] | None = None) -> LBETrainer:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(argv)
    set_seed(args.seed)
    if args.csv and not Path(args.csv).is_file():
        sys.exit(f"error: {args.csv} is not a file.")
    if args.csv:
        examples = Dataset.from_csv(args.csv, keep_default_na=False, na_values=[""])  # a label may be "None"
    else:
        examples = Dataset.from_list(generate("demo_cola", 480, args.seed))
    if "label" not in examples.features:
        sys.exit(f"error: {args.csv} must have a column label, beside {', '.join(examples.features)}.")
    texts = [name for name, kind in examples.features.items() if name != "label" and "string" in kind.dtype]
    columns = args.text_columns or texts
    if not set(columns) <= set(texts) or not 1 <= len(columns) <= (2 if args.text_columns else 1):
        sys.exit(f"error: name one or two columns of text with --text_columns, out of {', '.join(texts) or 'none'}.")
    if empty := [name for name in ("label", *columns) if None in examples.unique(name)]:
        sys.exit(f"error: {args.csv} has empty cells in {', '.join(empty)}: fill them in.")
    labels = (examples := examples.class_encode_column("label")).features["label"].names
    tokenizer = AutoTokenizer.from_pretrained(locate(args.model))
    examples = examples.map(lambda batch: tokenizer(*(batch[name] for name in columns), truncation=True), batched=True)
    try:
        splits = examples.train_test_split(0.2, seed=args.seed, stratify_by_column="label")
    except ValueError as error:  # too few examples of a class
        sys.exit(f"error: {args.csv} cannot be split: {' '.join(str(error).split())}")
    head = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    trainer = LBETrainer(
        AutoModelForSequenceClassification.from_pretrained(locate(args.model), ignore_mismatched_sizes=True, **head),
        args,
        train_dataset=splits["train"],
        eval_dataset=splits["test"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
        callbacks=[InformationFlowCallback()],
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
