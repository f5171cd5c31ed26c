"""The command that does one run: its exit codes, and the one line of each error."""

import errno
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import checkpointing
from transformers import TrainingArguments

from glue_runs.finetune import command
from glue_runs.finetune.command import main

RUN = (
    "--task_name demo_rte --model_name_or_path minilm --max_steps 2 --per_device_train_batch_size 4 --use_cpu".split()
)


DENSE = ["--lbe_target_modules", ".*output.dense"]

# The outputs of modules have no gradient under it, which is found only in the first batch.
REENTRANT = [f"--{name}={json.dumps(value)}" for name, value in checkpointing(use_reentrant=True).items()]


def test_files_that_cannot_be_written(
    tmp_path: Path, tiny_encoder: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(command, "write_json", full)
    arguments = ["--task_name", "demo_rte", "--model_name_or_path", tiny_encoder, "--output_dir", str(tmp_path)]
    assert main([*arguments, "--max_steps", "1", "--save_strategy", "no"]) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last == f"error: [Errno 28] No space left on device: '{tmp_path / 'result.json'}'"


def test_a_damaged_checkpoint_is_one_line(
    tmp_path: Path, tiny_encoder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--task_name", "demo_rte", "--model_name_or_path", tiny_encoder, "--output_dir", str(tmp_path)]
    assert main([*arguments, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]) == 0
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    (checkpoint / "model.safetensors").write_bytes(b"")
    assert main([*arguments, "--max_steps", "3", "--resume_from_checkpoint", str(checkpoint)]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {checkpoint} cannot be resumed from (SafetensorError: ")
    assert last.endswith("give an older one, or start without --resume_from_checkpoint.")


RTE = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task_name", "nope"], "There is no task 'nope'"),
        (["--task_name", "rte", "--data_dir", "/nowhere"], "/nowhere/RTE/train.tsv cannot be read"),
        (["--task_name", "rte", "--data_dir", "{folder}"], "line 3: 2 columns, expected 4"),
        (["--task_name", "demo_rte", "--model_name_or_path", "nobody/nothing"], "'nobody/nothing' cannot be loaded"),
        (["--task_name", "demo_rte", "--lbe_beta", "-1"], "lbe_beta must be zero or positive"),
        (["--task_name", "stsb", "--label_smoothing_factor", "0.1"], "needs labels, but stsb is a regression"),
        ([*RUN, "--do_eval"], "A run always trains and then evaluates: leave out"),
        ([*RUN, "--do_train", "false"], "A run always trains and then evaluates: leave out"),
        (["--task_name", "demo_rte", "--lbe_beta", "much"], "invalid float value: 'much'"),
        (["--task_name", "demo_rte", "--lbe_samples", "row"], "invalid choice: 'row'"),
        (["--task_name", "demo_rte", "--lbe_betta", "1"], "--lbe_betta"),
        ([*RUN, "--lbe_layers", "7"], "names layer 7, but there are 7 activations"),
        ([*RUN, "--lbe_target_modules", "poler"], "nearest names are"),
        ([*RUN, *DENSE, "--lbe_layers", "0", "99"], "names layer 99, but there are 12 activations"),
        ([*RUN, "--lbe_target_modules", "bert.embeddings.*"], "several examples: bert.embeddings.position_embeddings"),
        ([*RUN, "--per_device_train_batch_size", "1"], "A single example has no variance over examples"),
        ([*RUN, *REENTRANT, *DENSE, "--disable_tqdm", "true"], "Nothing would be regularized"),
        ([*RUN, "--dataloader_num_workers", "1", "--dataloader_prefetch_factor", "0"], "must be at least 1, not 0"),
        ([*RUN, "--resume_from_checkpoint", "last"], "out has no complete checkpoint"),
        ([*RUN, "--resume_from_checkpoint", "/nowhere"], "/nowhere is not a checkpoint folder"),
        ([*RUN, "--output_dir", "{folder}/broken.json/out"], "broken.json is a file: give another --output_dir."),
        ([*RUN, "--use_liger_kernel", "true"], "liger"),
        ([*RUN, "--report_to", "wandb"], "WandbCallback requires wandb to be installed"),
        ([*RUN, "--lr_scheduler_type", "cosine_with_min_lr"], "lr_scheduler_type cosine_with_min_lr cannot be used"),
        ([*RUN, "--max_length", "600"], "max_length must lie between 8 and 512"),
        (["missing.json"], "missing.json cannot be used: [Errno 2] No such file"),
        (["{folder}/broken.json"], "broken.json cannot be used"),
        (["{folder}/unknown.yaml"], "lbe_betta"),
        (["{folder}/types.yaml"], "types.yaml cannot be used"),
        (["{folder}/incomplete.yaml"], "task_name"),
        (["rte"], "rte cannot be used"),
        ([], "--task_name"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "RTE").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "RTE" / f"{name}.tsv").write_text(RTE + "1\tragged\n")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "types.yaml").write_text("task_name: rte\nlbe_beta: much\n")
    (tmp_path / "incomplete.yaml").write_text("lbe_beta: 0.1\n")
    (tmp_path / "unknown.yaml").write_text("task_name: rte\nlbe_betta: 1\n")
    arguments = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    if "--output_dir" not in arguments and arguments and arguments[0].startswith("--"):
        arguments += ["--output_dir", str(tmp_path / "out")]
    try:
        code: Any = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_as_programs(tmp_path: Path) -> None:
    plain = [sys.executable, "-m", "glue_runs.finetune"]
    launched = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m"]
    for index, program in enumerate((plain, [*launched, "glue_runs.finetune"])):
        arguments = [*RUN, "--output_dir", str(tmp_path / str(index))]
        ended = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert "2/2" in ended.stderr  # the progress bar
        assert "test: loss" in ended.stdout


def test_a_run_that_another_one_left_is_not_resumed(
    tmp_path: Path, tiny_encoder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--task_name", "demo_rte", "--model_name_or_path", tiny_encoder, "--output_dir", str(tmp_path)]
    arguments += ["--save_strategy", "steps", "--save_steps", "1", "--max_eval_samples", "8"]
    assert main([*arguments, "--max_steps", "1"]) == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    for more, message in (
        ([], "holds checkpoints of an earlier run"),
        (["--resume_from_checkpoint", "last", "--lbe_beta", "0.5"], "of a run with --lbe_beta"),
    ):
        assert main([*arguments, "--max_steps", "2", *more]) == 2
        assert message in capfd.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert main([*arguments, "--max_steps", "2", "--resume_from_checkpoint", "last"]) == 0
    assert (tmp_path / "checkpoint-2").is_dir()


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert main([*RUN, "--output_dir", str(tmp_path)]) == 130
    assert capfd.readouterr().err.endswith(
        "Stopped; --resume_from_checkpoint last resumes from the last checkpoint.\n"
    )


def test_an_encoder_that_returns_its_hidden_states_is_evaluated(tmp_path: Path, tiny_encoder: str) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    config |= {"output_hidden_states": True, "problem_type": "regression"}
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    arguments = ["--task_name", "demo_rte", "--model_name_or_path", str(tmp_path / "encoder")]
    arguments += ["--max_steps", "1", "--max_eval_samples", "8", "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == 0
    metrics = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]["test"]
    assert metrics["accuracy"] * 8 == round(metrics["accuracy"] * 8)
    assert metrics["loss"] == pytest.approx(math.log(2), rel=0.1)  # the cross-entropy of an untrained head


def test_several_gpus_in_one_process_are_refused_in_one_line(
    tmp_path: Path, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    folder = tmp_path / "out"
    arguments = ["--task_name", "demo_rte", "--model_name_or_path", tiny_encoder, "--output_dir", str(folder)]
    assert main(arguments) == 2
    assert "select one with CUDA_VISIBLE_DEVICES=0" in capfd.readouterr().err.splitlines()[-1]
    assert not folder.exists()
