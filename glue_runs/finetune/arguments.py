"""What a fine-tuning run is told: the encoder, the rows, and how to train."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser
from transformers.utils import logging

from lbe_hf import LBETrainingArguments

from ..errors import InputError
from ..redaction import redact
from ..tasks.glue import TASKS
from .precision import PRECISIONS, choose_precision

logger = logging.get_logger(__name__)


EXCLUDED_FROM_RUN_ID = re.compile(
    r"output_dir|data_dir|resume_from_checkpoint|use_cpu|disable_tqdm|report_to|run_name|project|log_.*|logging_.*"
    r"|save_(strategy|steps|total_limit)|push_to_hub|hub_.*|dataloader_(num_workers|pin_memory)|lbe_log_entropy"
)
"""Settings that do not change what a run computes, and therefore not which run it is."""


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

    task_name: str = field(metadata={"help": f"One of {', '.join(TASKS)}; those that start with demo_ are generated."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with the official files, as in RTE/train.tsv. Default: nyu-mll/glue on the Hub."},
    )
    max_length: int = field(default=128, metadata={"help": "Tokens at which a row is cut."})
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad every row to max_length, not to the longest row of its batch."}
    )
    validation_fraction: float = field(
        default=0.2, metadata={"help": "Share of the training set that is split off for validation."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of that split; the runs of one study share it."})


@dataclass
class FinetuneArguments(LBETrainingArguments):
    """`LBETrainingArguments` with the paper's values as defaults, and what saves time without changing the method."""

    output_dir: str = field(default="out", metadata={"help": "Folder for checkpoints, model and metrics."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate; the paper: 1e-5, 3e-5, 5e-5."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the training set."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows a device and micro-batch."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows a device in evaluation."})
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "How batches are drawn; random: as the authors' code does."}
    )
    precision: str = field(
        default="auto",
        metadata={"help": "auto: bf16 where the device computes in it, else fp32.", "choices": PRECISIONS},
    )
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint to resume from."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints that are kept."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log lines."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Checkpoint folder to go on from, or 'last' for the last one in output_dir."}
    )

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"There is no precision {self.precision!r}: choose one of {', '.join(PRECISIONS)}.")
        if self.precision == "auto":
            if self.bf16 or self.fp16:
                self.precision = "bf16" if self.bf16 else "fp16"
            else:
                self.precision, reason = choose_precision(self.use_cpu)
                logger.warning_once(f"Precision: {self.precision}, because {reason}.")
        self.bf16, self.fp16 = self.precision == "bf16", self.precision == "fp16"
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # without which TrainingArguments takes bf16 for a mistake
        super().__post_init__()


class Parser(HfArgumentParser):
    """Arguments that are dataclass fields, by their full names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """One line, where argparse would print the usage of some 150 arguments before it."""
        self.exit(2, f"error: {redact(message)} (see --help)\n")


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, FinetuneArguments]:
    """Arguments from the command line, or from one JSON or YAML file whose path is the only argument."""
    parser = _finetune_parser()
    if len(argv) != 1 or argv[0].startswith("-"):
        return parser.parse_args_into_dataclasses(argv)
    try:  # YAML holds JSON, too
        return parser.parse_yaml_file(argv[0])
    except Exception as error:  # the parser checks neither the syntax of the file nor the types of its values
        raise InputError(f"The arguments in {argv[0]} cannot be used: {error}") from error


def changed_settings(argv: list[str]) -> dict[str, Any]:
    """What a command line sets to other than its default, by name, with the type it has in the arguments."""
    values, defaults = vars(_finetune_parser().parse_args(argv)), _defaults()
    return {name: value for name, value in sorted(values.items()) if value != defaults[name]}


@lru_cache
def _defaults() -> dict[str, Any]:
    """As they are when parsed: the text that stands for a default is read like any other."""
    return {**vars(_finetune_parser().parse_args(["--task_name", ""])), "task_name": None}


@lru_cache
def _finetune_parser() -> Parser:
    return Parser((ModelArguments, DataArguments, FinetuneArguments), prog="python -m glue_runs.finetune")
