"""One run of a grid: what damaged checkpoints, failures and full disks make of it."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worker_tasks import lose_gpu

from glue_runs.analysis.store import GridFolder
from glue_runs.finetune.fingerprint import fingerprint_encoder
from glue_runs.grid import execution
from glue_runs.grid.arguments import parse_grid
from glue_runs.grid.execution import Seen, attempt, see
from glue_runs.grid.plan import Run, plan_runs
from glue_runs.grid.workers import do_in_workers

TIMES = ("seconds", "examples_per_second", "peak_memory_mib")


def run_with(encoder: str, *more: str) -> Run:
    """Two epochs of eight steps, of which the first leaves a checkpoint when the run is killed in the second."""
    given = f"--tasks demo_rte --models {encoder} --learning_rates 1e-3 --seeds 1 --lbe_alphas 0.5 --lbe_betas 0.05"
    arguments = [*given.split(), "--precision", "fp32", "--num_train_epochs", "2", "--save_total_limit", "2", *more]
    return plan_runs(*parse_grid(arguments))[1]


def make_folder(path: Path, run: Run) -> GridFolder:
    folder = GridFolder(path)
    folder.add({run.name: run.description}, "command")
    return folder


def record(folder: GridFolder, run: Run) -> dict[str, Any]:
    found = folder.result(run.name)
    assert found is not None
    found["config"].pop("resume_from_checkpoint")
    return {key: value for key, value in found.items() if key not in TIMES}


@pytest.fixture(scope="module")
def run(tiny_encoder: str) -> Run:
    return run_with(tiny_encoder)


@pytest.fixture(scope="module")
def alone(run: Run, tmp_path_factory: pytest.TempPathFactory) -> GridFolder:
    """The run, done, with both of its checkpoints."""
    folder = make_folder(tmp_path_factory.mktemp("alone"), run)
    line = attempt(folder, run, Seen())
    assert line is not None
    assert "test accuracy" in line
    assert sorted(path.name for path in folder.run_dir(run.name).glob("checkpoint-*")) == [
        "checkpoint-16",
        "checkpoint-8",
    ]
    return folder


@pytest.fixture
def killed(alone: GridFolder, run: Run, tmp_path: Path) -> GridFolder:
    """The run as a kill leaves it after the first checkpoint."""
    folder = make_folder(tmp_path / "killed", run)
    shutil.copytree(alone.run_dir(run.name) / "checkpoint-8", folder.run_dir(run.name) / "checkpoint-8")
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def spoil_optimizer(path: Path) -> None:
    import torch

    torch.save({"state": {}, "param_groups": []}, path)


@pytest.mark.parametrize(
    ("name", "damage", "note"),
    [
        ("lbe_targets.safetensors", Path.unlink, "checkpoint-8 is incomplete"),
        ("trainer_state.json", cut, "checkpoint-8 is incomplete"),
        ("model.safetensors", cut, "checkpoint-8 cannot be resumed from (SafetensorError: "),
        ("lbe_targets.safetensors", cut, "checkpoint-8 cannot be resumed from (ValueError: "),
        ("optimizer.pt", cut, "checkpoint-8 cannot be resumed from (RuntimeError: "),
        ("optimizer.pt", spoil_optimizer, "checkpoint-8 cannot be resumed from (ValueError: "),
        ("scheduler.pt", blank, "checkpoint-8 cannot be resumed from ("),
        ("rng_state.pth", blank, "checkpoint-8 cannot be resumed from ("),
    ],
)
def test_a_damaged_checkpoint_is_done_without(
    alone: GridFolder, killed: GridFolder, run: Run, name: str, damage: Callable[[Path], None], note: str
) -> None:
    damage(killed.run_dir(run.name) / "checkpoint-8" / name)
    line = attempt(killed, run, Seen())
    assert line is not None
    assert note in line
    assert len(line.splitlines()) == 1
    assert record(killed, run) == record(alone, run)
    assert killed.result(run.name)["seconds"] > 0  # type: ignore[index]


def test_the_checkpoint_before_a_damaged_one_serves(alone: GridFolder, killed: GridFolder, run: Run) -> None:
    last = killed.run_dir(run.name) / "checkpoint-16"
    shutil.copytree(alone.run_dir(run.name) / "checkpoint-16", last)
    cut(last / "model.safetensors")
    line = attempt(killed, run, Seen())
    assert line is not None
    assert "resumed, checkpoint-16 cannot be resumed from (SafetensorError: " in line
    assert record(killed, run) == record(alone, run)


def test_an_error_of_the_run_itself_costs_no_checkpoint(
    killed: GridFolder, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("glue_runs.finetune.trainer.GlueTrainer.training_step", fail)
    assert attempt(killed, run, Seen()) == f"{run.name}: failed: no such kernel"
    assert sorted(path.name for path in killed.run_dir(run.name).iterdir()) == ["checkpoint-8", "error.txt"]
    monkeypatch.undo()
    line = attempt(killed, run, see(killed, run.name))
    assert line is not None
    assert line.endswith(", resumed")


def test_an_error_after_the_first_step_is_not_blamed_on_the_checkpoint(
    killed: GridFolder, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def fail(trainer: Any, *arguments: Any, **named: Any) -> Any:
        trained.append(trainer.state.global_step)
        if len(trained) == 3:
            raise RuntimeError("no such kernel")
        return original(trainer, *arguments, **named)

    original = execution.finetune.__globals__["GlueTrainer"].training_step
    monkeypatch.setattr("glue_runs.finetune.trainer.GlueTrainer.training_step", fail)
    assert attempt(killed, run, Seen()) == f"{run.name}: failed: no such kernel"
    assert trained == [8, 9, 10]
    assert (killed.run_dir(run.name) / "checkpoint-8").is_dir()


def test_a_failure_is_tried_again_whatever_its_date(tmp_path: Path, tiny_encoder: str) -> None:
    run = run_with(tiny_encoder, "--max_steps", "1")
    folder = make_folder(tmp_path, run)
    folder.run_dir(run.name).mkdir()
    error = folder.run_dir(run.name) / "error.txt"
    error.write_text("failed")
    os.utime(error, (time.time() + 10**6, time.time() + 10**6))
    before = see(folder, run.name)
    error.unlink()
    error.write_text("failed in the meantime")
    os.utime(error, (time.time() - 10**6, time.time() - 10**6))
    assert attempt(folder, run, before) is None
    line = attempt(folder, run, see(folder, run.name))
    assert line is not None
    assert "test accuracy" in line


def test_a_failure_that_cannot_be_written_is_a_line(
    tmp_path: Path, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = run_with(tiny_encoder, "--max_steps", "1", "--lbe_layers", "77")
    folder = make_folder(tmp_path, run)
    monkeypatch.setattr(Path, "write_text", full)
    line = attempt(folder, run, Seen())
    assert line is not None
    assert line.startswith(f"{run.name}: failed: lbe_layers names layer 77")
    assert line.endswith("(error.txt cannot be written: [Errno 28] No space left on device)")


def test_a_run_that_another_grid_wants_with_other_weights_is_left_alone(tmp_path: Path, tiny_encoder: str) -> None:
    run = run_with(tiny_encoder, "--max_steps", "1")
    folder = GridFolder(tmp_path)
    folder.add({run.name: {**run.description, "trained_on": {"examples": "a"}}}, "one")
    before = see(folder, run.name)
    folder.add({run.name: {**run.description, "trained_on": {"examples": "b"}}}, "another")
    line = attempt(folder, run, before)
    assert line == f"{run.name}: left alone, because another grid in this folder trains it on something else"
    assert folder.state(run.name) == "missing"
    line = attempt(folder, run, see(folder, run.name))
    assert line is not None
    assert "test accuracy" in line


def test_weights_that_change_while_a_grid_works_are_noticed(tmp_path: Path, tiny_encoder: str) -> None:
    import tiny

    model = tmp_path / "model"
    shutil.copytree(tiny_encoder, model)
    run = run_with(str(model), "--max_steps", "1")
    folder = GridFolder(tmp_path / "grid")
    folder.add({run.name: {**run.description, "trained_on": fingerprint_encoder(str(model))}}, "one")
    before = see(folder, run.name)
    tiny.save_encoder(model, initializer_range=0.1)
    line = attempt(folder, run, before)
    assert line == f"{run.name}: failed: The weights of {model} changed after the grid started: start it again."
    assert folder.state(run.name) == "failed"
    shutil.copytree(tiny_encoder, model, dirs_exist_ok=True)
    line = attempt(folder, run, see(folder, run.name))
    assert line is not None
    assert "test accuracy" in line


@pytest.mark.parametrize("kind", ["named pipe", "link to a folder", "link to a checkpoint", "broken link"])
def test_what_a_run_folder_should_not_hold_is_removed(
    kind: str, alone: GridFolder, run: Run, killed: GridFolder, tmp_path: Path
) -> None:
    path = killed.run_dir(run.name)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    if kind == "named pipe":
        os.mkfifo(path / "pipe")
    else:
        place = {"link to a checkpoint": alone.run_dir(run.name) / "checkpoint-16", "broken link": tmp_path / "no"}
        (path / "checkpoint-16").symlink_to(place.get(kind, tmp_path / "precious"))
    line = attempt(killed, run, Seen())
    assert line is not None
    assert line.endswith(", resumed")
    assert record(killed, run) == record(alone, run)
    assert (tmp_path / "precious" / "thesis.tex").exists()
    assert (alone.run_dir(run.name) / "checkpoint-16" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: device-side assert triggered",
    ],
)
def test_a_fault_of_the_machine_costs_no_checkpoint(
    killed: GridFolder, run: Run, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError(message)

    attempts = []
    monkeypatch.setattr("glue_runs.finetune.trainer.GlueTrainer.train", lambda *a, **n: attempts.append(1) or fail())
    line = attempt(killed, run, Seen())
    assert line is not None
    assert message in line
    assert "cannot be resumed" not in line
    assert len(attempts) == 1
    assert (killed.run_dir(run.name) / "checkpoint-8").is_dir()


@pytest.mark.parametrize("error", [RuntimeError("no \udcff"), ValueError("no \ud800")])
def test_an_error_that_is_no_unicode_is_a_line(
    error: Exception, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    folder = make_folder(tmp_path, run)
    monkeypatch.setattr(execution, "prepare", fail)
    line = attempt(folder, run, Seen())
    assert line is not None
    assert line.startswith(f"{run.name}: failed: no \\ud")
    assert "no \\ud" in (folder.run_dir(run.name) / "error.txt").read_text()
    monkeypatch.setattr(execution, "execute", fail)
    line = attempt(folder, run, see(folder, run.name))
    assert line is not None
    assert line.startswith(f"{run.name}: failed: no \\ud")


def test_a_folder_that_is_gone_is_a_line(tmp_path: Path, tiny_encoder: str) -> None:
    run = run_with(tiny_encoder, "--max_steps", "1")
    (tmp_path / "grid").touch()  # where there was a folder
    line = attempt(GridFolder(tmp_path / "grid"), run, Seen())
    assert line is not None
    assert line.startswith(f"{run.name}: failed: ")


def test_a_run_that_diverges_tells(tmp_path: Path, tiny_encoder: str) -> None:
    run = run_with(tiny_encoder, "--max_steps", "3", "--learning_rates", "1e30")
    folder = make_folder(tmp_path, run)
    line = attempt(folder, run, Seen())
    assert line is not None
    assert ", diverged, " in line
    assert folder.result(run.name)["diverged"] is True  # type: ignore[index]


def test_a_process_whose_gpu_failed_is_replaced() -> None:
    results = do_in_workers(lose_gpu, str, ["fails", "next"], workers=1, threads=1, max_retries=1)
    assert sorted(results) == ["fails after 1", "next after 0"]
