import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from huggingface_hub.repocard_data import eval_results_to_model_index

from glue_runs.finetune.arguments import EXCLUDED_FROM_RUN_ID, parse
from glue_runs.finetune.card import _results, command
from glue_runs.tasks.glue import TASKS


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--task_name rte", "--model_name_or_path google-bert/bert-base-uncased --task_name rte --precision fp32"),
        (
            "--task_name cola --model_name_or_path minilm --lbe_beta 0.05 --lbe_layers 1 -1 --seed 7 --data_dir /x "
            "--output_dir out --push_to_hub --hub_token hf_x --lr_scheduler_type cosine --lbe_ignore_padding false",
            None,
        ),
        (r"--task_name rte --lbe_target_modules .*\.layer\.\d+\.output\.dense|.*\.pooler --pad_to_max_length", None),
        (
            """--task_name rte --lbe_target_modules '["output.dense", "pooler"]' --lr_scheduler_kwargs '{"a": 1}'""",
            None,
        ),
        ("--task_name rte --model_name_or_path {folder} --max_steps 3", None),
        (
            "--task_name rte --gradient_accumulation_steps 2 --accelerator_config "
            """'{"split_batches": true, "gradient_accumulation_kwargs": {"sync_with_dataloader": null}}' """
            """--fsdp_config '{"min_num_params": 10}' --optim_args 'eps=1e-6,betas=(0.9,0.95)' """
            "--debug underflow_overflow",
            None,
        ),
        ("--task_name rte --eval_strategy epoch --save_strategy epoch --load_best_model_at_end", None),
    ],
)
def test_the_command_trains_the_same(arguments: str, told: str | None, tmp_path: Path) -> None:
    given = parse([*shlex.split(arguments.replace("{folder}", str(tmp_path))), "--precision", "fp32"])
    line = command(*given)
    if told is not None:
        assert line == f"python -m glue_runs.finetune {told}"
    assert not {"/x", "hf_x", "out", str(tmp_path)} & set(shlex.split(line))
    for first, second in zip(given, parse(shlex.split(line)[3:]), strict=True):
        for field in dataclasses.fields(first):
            own, again = getattr(first, field.name), getattr(second, field.name)
            if field.init and not EXCLUDED_FROM_RUN_ID.fullmatch(field.name) and own != str(tmp_path):
                assert again == own, field.name


def test_the_command_without_what_changes_nothing_or_is_refused_alone() -> None:
    told = ["--model_name_or_path", "minilm", "--task_name", "rte", "--precision", "fp32"]
    more = (
        "--dataloader_num_workers 2 --dataloader_persistent_workers true --dataloader_prefetch_factor 3 "
        "--do_train --do_eval --include_num_input_tokens_seen true"
    )
    assert command(*parse([*told, *more.split()])) == f"python -m glue_runs.finetune {' '.join(told)}"


def test_a_configuration_is_printed_without_what_it_leaves_open() -> None:
    line = command(*parse(["--task_name", "rte", "--accelerator_config", '{"split_batches": true}']))
    (config,) = (json.loads(word) for word in shlex.split(line) if word.startswith("{"))
    assert config["split_batches"] is True
    assert None not in config.values()


def test_the_command_of_a_run_with_fsdp() -> None:
    *given, args = parse(["--task_name", "rte", "--precision", "fp32"])
    args.fsdp = True  # as TrainingArguments leaves it; from the command line, it also sets environment variables
    assert command(*given, args).endswith("--task_name rte --fsdp --precision fp32")


def test_official_names_of_splits_and_metrics() -> None:
    metrics = {"test": {"accuracy": 0.5, "pearson": 0.1, "spearmanr": 0.2}, "test_mismatched": {"accuracy": 0.6}}
    found = {
        task: [
            (r.dataset_config, r.dataset_split, r.metric_type, r.metric_value) for r in _results(TASKS[task], metrics)
        ]
        for task in ("mnli", "stsb", "demo_rte")
    }
    assert found == {
        "mnli": [("mnli", "validation_matched", "accuracy", 0.5), ("mnli", "validation_mismatched", "accuracy", 0.6)],
        "stsb": [("stsb", "validation", "pearsonr", 0.1), ("stsb", "validation", "spearmanr", 0.2)],
        "demo_rte": [],
    }
    (model,) = eval_results_to_model_index("x", _results(TASKS["mnli"], metrics))
    assert [result["dataset"]["split"] for result in model["results"]] == [
        "validation_matched",
        "validation_mismatched",
    ]
