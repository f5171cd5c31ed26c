"""Print and draw the batch entropy of each layer of a text encoder on real rows: `python -m lbe_hf.flow --help`."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, get_args

from datasets import Dataset, load_dataset  # type: ignore[import-untyped]
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from .diagnosis import InformationFlow, information_flow
from .moments import Samples


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error for input that cannot be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m lbe_hf.flow", description="Batch entropy of each layer of a text encoder on real rows."
    )
    parser.add_argument("--model_name_or_path", required=True, help="Name on the Hub, or a local folder.")
    rows = parser.add_mutually_exclusive_group(required=True)
    rows.add_argument("--task_name", help="GLUE task, from nyu-mll/glue on the Hub.")
    rows.add_argument("--data_file", help="Local rows instead: .tsv or .csv with a header line, .json, or .parquet.")
    parser.add_argument("--text_columns", nargs="+", help="One or two columns; default: all text but the label.")
    parser.add_argument("--target_modules", help="Expression, or JSON list of names; default: the hidden states.")
    parser.add_argument(
        "--samples", choices=get_args(Samples), default="sequence", help="What the variance runs over."
    )
    parser.add_argument("--batch_size", type=int, default=32, help="Rows of a batch.")
    parser.add_argument("--num_batches", type=int, default=4, help="Batches that are averaged.")
    parser.add_argument("--max_length", type=int, default=128, help="Tokens at which a row is cut.")
    parser.add_argument("--picture", default="flow.png", help="Where the picture goes; needs the extra plot.")
    args = parser.parse_args(argv)
    try:
        flow = _measure(args)
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(flow)
    if importlib.util.find_spec("matplotlib") is None:
        print("No picture was drawn: pip install 'lbe-hf[plot]'.")
    else:
        from .figures import draw_flow

        draw_flow(flow).savefig(args.picture, dpi=150)
        print(f"picture saved to {args.picture}")
    return 0


def _measure(args: argparse.Namespace) -> InformationFlow:
    """What the command line asks for; the rows are drawn with a fixed seed."""
    rows = _load_rows(args.task_name, args.data_file)
    columns = args.text_columns or [
        name
        for name, feature in rows.features.items()
        if feature.dtype in ("string", "large_string") and name != "label"
    ]
    missing = [column for column in columns if column not in rows.features]
    if missing or not 1 <= len(columns) <= 2:
        raise ValueError(
            f"Name one or two of these columns with --text_columns: {', '.join(rows.features)}; "
            f"not {', '.join(columns) or 'none'}."
        )
    rows = rows.shuffle(seed=0).select(range(min(len(rows), args.batch_size * args.num_batches)))
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path)
    model.config.pad_token_id = tokenizer.pad_token_id

    def encode(batch: list[dict[str, str]]) -> Any:
        texts = [[str(row[column]) for row in batch] for column in columns]
        return tokenizer(*texts, truncation=True, max_length=args.max_length, padding=True, return_tensors="pt")

    loader: DataLoader[Any] = DataLoader(rows, batch_size=args.batch_size, collate_fn=encode)
    targets = args.target_modules
    if targets is not None and targets.startswith("["):
        targets = json.loads(targets)
    return information_flow(model, loader, target_modules=targets, num_batches=args.num_batches, samples=args.samples)


def _load_rows(task_name: str | None, data_file: str | None) -> Dataset:
    if data_file is None:
        try:
            return load_dataset("nyu-mll/glue", task_name, split="train")
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"nyu-mll/glue cannot be loaded ({reason}): give a file of rows as --data_file."
            ) from None
    suffix = Path(data_file).suffix.lstrip(".")
    if suffix == "tsv":  # those of GLUE quote nothing
        return load_dataset("csv", data_files=data_file, split="train", delimiter="\t", quoting=csv.QUOTE_NONE)
    if suffix not in ("csv", "json", "jsonl", "parquet"):
        raise ValueError(f"{data_file} is none of .tsv, .csv, .json, .jsonl and .parquet.")
    return load_dataset(suffix.removesuffix("l"), data_files=data_file, split="train")


if __name__ == "__main__":
    sys.exit(main())
