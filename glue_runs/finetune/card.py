"""The model card of a run: that of `LBETrainer`, with the results on the task and the command that reproduces them."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from lbe_hf import LBETrainer
from lbe_hf.model_card import render, save_card

from ..tasks.data import HUB_DATASET, name_as_test
from ..tasks.glue import Task, get_task
from .arguments import EXCLUDED_FROM_RUN_ID, DataArguments, FinetuneArguments, ModelArguments
from .encoder import MINILM
from .output import repository

CARD_NAME = "README.md"

_TEMPLATE = Path(__file__).with_name("card_template.md")
_TASK_TYPE = "text-classification"
_ON_THE_HUB = {"pearson": "pearsonr"}
"""Metrics that have another name on the Hub than in GLUE."""

_ALWAYS_GIVEN = ("task_name", "model_name_or_path", "precision")
_LEFT_OUT = re.compile(
    rf"{EXCLUDED_FROM_RUN_ID.pattern}|bf16|fp16|do_(train|eval|predict)|include_num_input_tokens_seen"
    "|dataloader_(persistent_workers|prefetch_factor|multiprocessing_context)"  # refused without workers
)
"""Arguments that do not change what is computed, or that follow from the others."""


def write_card(
    trainer: LBETrainer,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: FinetuneArguments,
    metrics: dict[str, dict[str, float]],
) -> None:
    """Write the card into the output folder, next to the model; `metrics` are those of the record, by split."""
    task, base = get_task(data_args.task_name), model_args.model_name_or_path
    is_minilm = base == MINILM
    name = repository(args.hub_model_id, args.output_dir).split("/")[-1]
    trainer.create_model_card(
        language="en",
        license="apache-2.0" if is_minilm else None,
        model_name=name,
        finetuned_from="sentence-transformers/all-MiniLM-L6-v2" if is_minilm else None,
        tasks=_TASK_TYPE,
        tags=[_TASK_TYPE, *([] if task.generated else ["glue"]), task.name],
        dataset=_dataset_name(task),
        dataset_tags=None if task.generated else HUB_DATASET,
        dataset_args=None if task.generated else task.name,
    )
    if not trainer.is_world_process_zero():
        return
    path = Path(args.output_dir) / CARD_NAME
    card = ModelCard.load(path)
    # What Trainer writes about a model that comes from a folder.
    card.text = card.text.replace("was trained from scratch on", "is a fine-tuned version of a local model on")
    card.data.pipeline_tag = _TASK_TYPE
    card.data.metrics = [_ON_THE_HUB.get(metric, metric) for metric in task.metrics]
    card.data.model_name = name
    card.data.eval_results = _results(task, metrics)
    save_card(card, path, _section(task, metrics, command(model_args, data_args, args), args.seed))


def command(*arguments: Any) -> str:
    """The command line that trains the same model: all arguments that change what is computed from its default.

    It holds neither a token nor a path of this machine: a model from a folder is `path/to/model`, and the examples
    come from the Hub.
    """
    words = ["python", "-m", "glue_runs.finetune"]
    for own in arguments:
        same = {name: getattr(own, name) for name in ("task_name", "precision") if hasattr(own, name)}
        default = type(own)(**same)
        for field in dataclasses.fields(own):
            value = getattr(own, field.name)
            given = field.name in _ALWAYS_GIVEN or value != getattr(default, field.name)
            if given and field.init and not _LEFT_OUT.fullmatch(field.name):
                words += [f"--{field.name}", *_words(field.name, value)]
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    if name == "model_name_or_path" and Path(value).exists():
        return ["path/to/model"]
    if isinstance(value, enum.Enum):
        return [str(value.value)]
    if name == "fsdp" and value is True:
        return []  # it takes text, and is True only without a value
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, (list, tuple)) and name != "lbe_target_modules":
        return [word for item in value for word in _words(name, item)]
    if dataclasses.is_dataclass(value):
        value = {name: setting for name, setting in vars(value).items() if setting is not None}
    return [json.dumps(value) if isinstance(value, (dict, list)) else str(value)]


def _dataset_name(task: Task) -> str:
    return f"generated {task.name}" if task.generated else f"GLUE {task.folder}"


def _results(task: Task, metrics: dict[str, dict[str, float]]) -> list[EvalResult]:
    """Scores on the official validation sets, with the names that the Hub has for splits and metrics."""
    return [
        EvalResult(
            task_type=_TASK_TYPE,
            task_name="Text Classification",
            dataset_type=HUB_DATASET,
            dataset_name=_dataset_name(task),
            dataset_config=task.name,
            dataset_split=split,
            metric_type=_ON_THE_HUB.get(metric, metric),
            metric_name=metric,
            metric_value=metrics[name_as_test(split)][metric],
        )
        for split in ([] if task.generated else task.test_splits)
        for metric in task.metrics
    ]


def _section(task: Task, metrics: dict[str, dict[str, float]], command: str, seed: int) -> str:
    official = {name_as_test(split): split for split in task.test_splits}
    names = {"validation": "validation: split off from the training set, used to choose settings"}
    names |= {name: f"{name}: the official {split} set" for name, split in official.items()}
    return render(
        _TEMPLATE,
        dataset=_dataset_name(task),
        metrics=task.scores,
        rows=[(names[split], values) for split, values in metrics.items()],
        generated=task.generated,
        command=command,
        seed=seed,
    )
