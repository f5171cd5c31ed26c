"""The arguments of a fine-tuning run: encoder, examples, training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

import torch
from transformers.utils import logging

from lbe_hf import LBETrainingArguments
from lbe_hf.training_args import LBEArguments

from ..errors import InputError
from ..tasks.data import ROUNDINGS
from ..tasks.glue import TASKS
from .checks import check_values
from .parser import FileParser, Parser
from .precision import PRECISIONS, choose_precision

logger = logging.get_logger(__name__)


EXCLUDED_FROM_RUN_ID = re.compile(
    r"output_dir|data_dir|resume_from_checkpoint|use_cpu|disable_tqdm|report_to|run_name|project|log_.*|logging_.*"
    r"|save_(strategy|steps|total_limit)|push_to_hub|hub_.*|dataloader_(num_workers|pin_memory)|lbe_log_entropy"
)
"""Settings that do not change what a run computes, and are therefore no part of its identity."""


_SAMPLING_STRATEGIES = next(
    each.metadata["choices"] for each in fields(LBETrainingArguments) if each.name == "train_sampling_strategy"
)
"""Trainer treats any other word as "random"."""


@dataclass
class ModelArguments:
    """The encoder."""

    model_name_or_path: str = field(
        default="google-bert/bert-base-uncased",
        metadata={"help": "Name on the Hub or local path; 'minilm' is the encoder of the [demo] extra."},
    )


@dataclass
class DataArguments:
    """The examples and their length."""

    task_name: str = field(metadata={"help": f"One of {', '.join(TASKS)}; those that begin with demo_ are generated."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with the official files, as in RTE/train.tsv. Default: nyu-mll/glue on the Hub."},
    )
    max_length: int = field(
        default=128, metadata={"help": "Maximum length of an example, in tokens; longer ones are cut."}
    )
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad to max_length instead of to the longest example of the batch."}
    )
    validation_fraction: float = field(
        default=0.2, metadata={"help": "Fraction of the training set that is split off for validation."}
    )
    validation_rounding: str = field(
        default="up",
        metadata={
            "help": "How that fraction is rounded to a whole number of examples; down: as in the authors' code.",
            "choices": ROUNDINGS,
        },
    )
    split_seed: int = field(
        default=0, metadata={"help": "Seed of that split; runs that are compared should share it."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on at most this many examples of the training split."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on at most this many examples of each other split."}
    )


@dataclass
class FinetuneArguments(LBETrainingArguments):
    """`LBETrainingArguments` with the paper's values as defaults, and faster settings where they change no result."""

    output_dir: str = field(default="out", metadata={"help": "Folder for checkpoints, model and metrics."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate; the paper: 1e-5, 3e-5, 5e-5."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "Passes over the training set."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Examples per device and micro-batch."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Examples per device in evaluation."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "How batches are drawn; random: as in the authors' code.",
            "choices": _SAMPLING_STRATEGIES,
        },
    )
    precision: str = field(
        default="auto",
        metadata={"help": "auto: bf16 where the device supports it, else fp32.", "choices": PRECISIONS},
    )
    save_strategy: str = field(default="epoch", metadata={"help": "When to write a checkpoint to resume from."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Number of checkpoints that are kept."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between log lines."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Checkpoint folder to resume from, or 'last' for the last one in output_dir."}
    )

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(f"There is no precision {self.precision!r}: choose one of {', '.join(PRECISIONS)}.")
        flags = {name for name in ("bf16", "fp16") if getattr(self, name)}
        if len(flags) > 1 or (flags and self.precision not in {"auto", *flags}):
            raise InputError(f"--{' and --'.join(sorted(flags))} contradict the precision: give only --precision.")
        if self.precision == "auto":
            if self.bf16 or self.fp16:
                self.precision = "bf16" if self.bf16 else "fp16"
            else:
                self.precision, reason = choose_precision(self.use_cpu)
                logger.warning_once(f"Precision: {self.precision}, because {reason}.")
        self.bf16, self.fp16 = self.precision == "bf16", self.precision == "fp16"
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise, TrainingArguments refuses bf16
        super().__post_init__()


_EXAMPLES = """Fine-tunes an encoder on a task of GLUE, with layerwise batch-entropy regularization.

examples:
  python -m glue_runs.finetune --task_name rte --data_dir path/to/glue --output_dir runs/rte
  python -m glue_runs.finetune --task_name demo_cola --model_name_or_path minilm --lbe_beta 0.05
  python -m glue_runs.finetune arguments.yaml

ARGUMENTS may also be given in one JSON or YAML file, by their names without dashes. All arguments of
transformers.TrainingArguments are supported: --help_training lists them.
"""

_OFTEN_SET = ["max_steps", "weight_decay", "warmup_steps", "gradient_accumulation_steps", "seed", "use_cpu"]
_PUSHED = ["push_to_hub", "hub_model_id", "hub_token", "hub_private_repo"]

ARGUMENT_GROUPS = {
    "encoder and examples": [each.name for cls in (ModelArguments, DataArguments) for each in fields(cls)],
    "regularization": [each.name for each in fields(LBEArguments)],
    "training": [*FinetuneArguments.__annotations__, *_OFTEN_SET],
    "push to the Hub": _PUSHED,
}
"""The arguments that `--help` lists, by the title of their group."""


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, FinetuneArguments]:
    """Arguments from the command line, or from one JSON or YAML file whose path is the only argument.

    Raises:
        InputError: a value cannot be used, or the file does not hold arguments.
    """
    if len(argv) == 1 and not argv[0].startswith("-"):
        try:
            return _checked(_finetune_parser(FileParser), _finetune_parser().words(argv[0]))
        except InputError as error:
            raise InputError(f"The arguments in {argv[0]} cannot be used: {error}") from error
    return _checked(_finetune_parser(), argv)


def _checked(parser: Parser, argv: list[str]) -> tuple[ModelArguments, DataArguments, FinetuneArguments]:
    model_args, data_args, args = parser.into_dataclasses(argv)
    given = parser.given(argv)
    evaluates_only = not given.get("do_train") and (given.get("do_eval") or given.get("do_predict"))
    if given.get("do_train") is False or evaluates_only:
        raise InputError("A run always trains and then evaluates: leave out --do_train, --do_eval and --do_predict.")
    check_values(data_args, args)
    return model_args, data_args, args


def given_settings(argv: list[str]) -> dict[str, Any]:
    """The settings that a command line gives, by name, with their types; required ones may be missing."""
    return _finetune_parser().given(argv)


def defining_settings(*arguments: ModelArguments | DataArguments | FinetuneArguments) -> dict[str, Any]:
    """The settings that say what a run computes, without its length, so that it may be resumed for longer."""
    values: dict[str, Any] = {}
    for each in arguments:
        values |= each.to_sanitized_dict() if isinstance(each, FinetuneArguments) else vars(each)
    left_out = re.compile(rf"{EXCLUDED_FROM_RUN_ID.pattern}|max_steps|num_train_epochs|local_rank|deepspeed|fsdp.*")
    return {name: value for name, value in values.items() if not left_out.fullmatch(name)}


def changed_settings(argv: list[str]) -> dict[str, Any]:
    """The settings that a command line changes from their defaults, by name, with their types."""
    values, defaults = vars(_finetune_parser().parse_args(argv)), _defaults()
    return {name: value for name, value in sorted(values.items()) if value != defaults[name]}


@lru_cache
def _defaults() -> dict[str, Any]:
    """The defaults after parsing: the text of a default is parsed like any other."""
    return {**vars(_finetune_parser().parse_args(["--task_name", ""])), "task_name": None}


@lru_cache
def _finetune_parser(parser: type[Parser] = Parser) -> Parser:
    return parser(
        (ModelArguments, DataArguments, FinetuneArguments),
        groups=ARGUMENT_GROUPS,
        rest="arguments of transformers.TrainingArguments",
        prog="python -m glue_runs.finetune",
        usage="python -m glue_runs.finetune ARGUMENTS",
        description=_EXAMPLES,
    )
