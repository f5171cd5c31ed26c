import errno
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from glue_runs.analysis.store import GridFolder
from glue_runs.finetune.run import prepare
from glue_runs.grid.command import main
from glue_runs.grid.engines import LocalEngine

TIMINGS = ["seconds", "examples_per_second", "peak_memory_mib"]
FOUR_RUNS = (
    "--tasks demo_rte --seeds 1 2 --learning_rates 1e-3 --lbe_alphas 0.5 --lbe_betas 0.05 --num_train_epochs 4 "
    "--workers 1"
).split()


@pytest.fixture(scope="module")
def four_runs(tiny_encoder: str) -> list[str]:
    """Two seeds of baseline and LBE, with four checkpoints each."""
    return [*FOUR_RUNS, "--models", tiny_encoder]


@pytest.fixture(scope="module")
def left_alone(four_runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Results of the four runs without a fault, by a grid in this process."""
    folder = tmp_path_factory.mktemp("alone") / "grid"
    assert main([*four_runs, "--cpus_per_run", "1", "--output_dir", str(folder)]) == 0
    return results(folder)


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "glue_runs.grid", *arguments, "--output_dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(folder: Path) -> str:
    """`results.csv` without what no two runs have in common."""
    return pd.read_csv(folder / "results.csv").drop(columns=TIMINGS).to_csv()


def exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_killed_three_times_it_ends_as_if_left_alone(four_runs: list[str], left_alone: str, tmp_path: Path) -> None:
    four_runs = [*four_runs, "--cpus_per_run", "1"]
    moments = random.Random(0)
    folder = GridFolder(tmp_path / "killed")
    interrupted = 0
    for _ in range(3):
        grid = start(four_runs, folder.path)
        done_before = sum((folder.run_dir(path.name) / "result.json").exists() for path in folder.path.glob("runs/*"))
        while grid.poll() is None and not list(folder.path.glob("runs/*/checkpoint-*")):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 2))
        grid.send_signal(signal.SIGKILL)
        grid.communicate()
        interrupted += grid.returncode == -signal.SIGKILL
        done = sum((folder.run_dir(path.name) / "result.json").exists() for path in folder.path.glob("runs/*"))
        assert done >= done_before
    assert interrupted > 0
    last = start(four_runs, folder.path)
    assert "All 4 runs are done." in last.communicate()[0]
    assert results(folder.path) == left_alone
    assert not list(folder.path.glob("runs/*/checkpoint-*"))


def workers_of(grid: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(grid.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def wait_for_checkpoint(grid: subprocess.Popen[str], folder: Path) -> None:
    while not list(folder.glob("runs/*/checkpoint-*/trainer_state.json")):
        assert grid.poll() is None
        time.sleep(0.01)


def test_several_workers_that_are_all_killed(four_runs: list[str], left_alone: str, tmp_path: Path) -> None:
    grid = start([*four_runs, "--workers", "2", "--cpus_per_run", "1"], tmp_path / "grid")
    wait_for_checkpoint(grid, tmp_path / "grid")
    workers = workers_of(grid)
    assert len(workers) == 2
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
    printed = grid.communicate()[0]
    assert grid.returncode == 0
    assert ", resumed" in printed
    assert results(tmp_path / "grid") == left_alone


def test_interrupted_with_several_workers(four_runs: list[str], tmp_path: Path) -> None:
    grid = start([*four_runs, "--workers", "2"], tmp_path)
    wait_for_checkpoint(grid, tmp_path)
    children = psutil.Process(grid.pid).children(recursive=True)
    grid.send_signal(signal.SIGINT)
    printed = grid.communicate()[0]
    assert grid.returncode == 130
    assert printed.strip().splitlines()[-1] == "Stopped; the same command resumes from here."
    assert "Traceback" not in printed
    assert psutil.wait_procs(children, timeout=30)[1] == []


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of three runs, of which that with beta 0.5 fails when it is done, not when the grid starts."""

    def fail(model_args: Any, data_args: Any, args: Any) -> Any:
        if args.lbe_beta == 0.5:
            raise ValueError("poisoned")
        return prepare(model_args, data_args, args)

    monkeypatch.setattr("glue_runs.grid.execution.prepare", fail)
    return ["--lbe_betas", "0.05", "0.5", "--seeds", "1"]


def test_a_failure_that_cannot_be_written_does_not_stop_the_others(
    four_runs: list[str],
    poisoned: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, *arguments: Any, **named: Any) -> int:
        if path.name == "error.txt":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *arguments, **named)

    write_text = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    assert main([*four_runs, *poisoned, "--max_steps", "1", "--output_dir", str(tmp_path)]) == 1
    printed = capfd.readouterr()
    assert "(error.txt cannot be written: [Errno 28] No space left on device)" in printed.out
    assert "2 of 3 runs are done" in printed.out
    assert "and could not leave an error.txt" in printed.err
    assert "Traceback" not in printed.out + printed.err


def test_two_grids_at_once_share_the_runs(four_runs: list[str], tmp_path: Path) -> None:
    grids = [start([*four_runs, "--num_train_epochs", "1"], tmp_path / "grid") for _ in range(2)]
    printed = [grid.communicate()[0] for grid in grids]
    assert [grid.returncode for grid in grids] == [0, 0]
    done = Counter(line.split(":")[0] for text in printed for line in text.splitlines() if "test accuracy" in line)
    assert sorted(done) == sorted(GridFolder(tmp_path / "grid").runs)
    assert set(done.values()) == {1}


def test_a_poisoned_run_does_not_stop_the_others(
    four_runs: list[str], poisoned: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*four_runs, *poisoned, "--num_train_epochs", "1", "--output_dir", str(tmp_path)]
    for _ in range(2):  # the failed run is tried again, the others are done
        assert main(arguments) == 1
        printed = capfd.readouterr()
        assert "**Incomplete: 2 of 3 runs are done, 1 failed (listed at the end).**" in printed.out
        (failed,) = tmp_path.glob("runs/*/error.txt")
        assert "Traceback" in failed.read_text()
        assert f"failed: {failed.parent.name}: ValueError: poisoned" in printed.err


def test_done_runs_are_not_run_again_and_a_wider_grid_adds_to_them(
    four_runs: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_among = []
    monkeypatch.setattr(
        "glue_runs.grid.command.choose_engine", lambda grid, runs: shared_among.append(len(runs)) or LocalEngine()
    )
    arguments = [*four_runs, "--max_steps", "1", "--output_dir", str(tmp_path)]
    assert main([*arguments, "--dry_run"]) == 0
    assert "4 runs: 4 missing" in capfd.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(arguments) == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/result.json")}
    assert len(written) == 4
    capfd.readouterr()
    assert main([*arguments, "--lbe_betas", "0.05", "0.5"]) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    assert "All 6 runs are done." in capfd.readouterr().out
    assert shared_among == [4, 6]  # done or not, so that a resumed grid has as many threads a run
    assert main([*arguments, "--dry_run"]) == 0
    assert "4 runs: 4 done" in capfd.readouterr().out
    assert (tmp_path / "scores.png").is_file()
    damaged = next(iter(written))
    damaged.write_text(damaged.read_text()[:200])
    assert main(arguments) == 2
    assert f"error: {damaged} is damaged" in capfd.readouterr().err


def test_another_model_under_the_same_path_is_refused(
    four_runs: list[str], tiny_encoder: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import tiny

    model = tmp_path / "model"
    shutil.copytree(tiny_encoder, model)
    arguments = [*four_runs, "--models", str(model), "--seeds", "1", "--max_steps", "1", "--use_cpu"]
    arguments += ["--output_dir", str(tmp_path / "grid")]
    assert main(arguments) == 0
    tiny.save_encoder(model, hidden_dropout_prob=0.3)
    capfd.readouterr()
    for refused in (arguments, [*arguments, "--seeds", "2"]):
        assert main(refused) == 2
        assert (
            "was trained on other weights than the runs wanted now" in capfd.readouterr().err.strip().splitlines()[-1]
        )
    assert len(list((tmp_path / "grid" / "runs").iterdir())) == 2
    for run in (tmp_path / "grid" / "runs").iterdir():
        shutil.rmtree(run)
    assert main(arguments) == 0


def test_examples_are_tokenized_once(four_runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glue_runs.finetune import run as finetune

    calls = []
    finetune.tokenized_examples.cache_clear()
    tokenize = finetune.tokenize
    monkeypatch.setattr(finetune, "tokenize", lambda *arguments: calls.append(1) or tokenize(*arguments))
    assert main([*four_runs, "--max_steps", "1", "--output_dir", str(tmp_path)]) == 0
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--seeds --models x", "argument --seeds: expected at least one argument"),
        ("--learning_rates -0.1", "--learning_rates must be positive, not -0.1"),
        ("--learning_rates fast", "invalid float value: 'fast'"),
        ("--tasks sst", "There is no task 'sst'"),
        ("--learning_rate 1e-5", "--learning_rate is swept by the grid: use --learning_rates"),
        ("--gpus_per_run 2", "--gpus_per_run must lie between 0 and 1, not 2"),
        ("--cpus_per_run 0", "--cpus_per_run must be at least 1"),
        ("--max_retries -1", "--max_retries must be zero or positive"),
        ("--engine slurm", "invalid choice: 'slurm'"),
        ("--tasks demo_rte --lbe_betta 1", "--lbe_betta"),
        ("--tasks demo_rte --lbe_samples rows", "invalid choice: 'rows'"),
        ("--tasks demo_rte --learning-rate 1e-5", "--learning_rate is swept by the grid"),
        ("--tasks demo_rte --per_device_train_batch_size 0", "per_device_train_batch_size must be at least 1"),
        ("--tasks demo_rte --label_names gold", "label_names must be labels"),
        ("--tasks demo_rte --models {encoder} --validation_fraction 2", "validation_fraction must be between 0 and 1"),
        (f"--tasks demo_rte --seeds 1{400 * '0'}", "seed must be at least 0 and at most 4294967295, not 1000"),
        ("--tasks demo_rte --models {encoder} --lr_scheduler_type cosine_with_min_lr", "lr_scheduler_kwargs"),
        ("--tasks demo_rte --models {encoder} --report_to wandb", "wandb"),
        ("--tasks demo_rte --models {encoder} --lbe_layers 77", "names layer 77"),
        ("--tasks demo_rte --models {encoder} --per_device_train_batch_size 1", "use lbe_samples='token'"),
        ("--tasks demo_rte --models {encoder} --activations hidden_states poler", "nearest names are"),
        (
            "--tasks demo_rte --models {encoder} --activations .*output.dense --lbe_layers 0 99",
            "names layer 99, but there are",
        ),
        ("--tasks demo_rte --models nobody/nothing", "Model 'nobody/nothing' cannot be loaded"),
        ("--tasks rte --data_dir /nowhere", "/nowhere/RTE/train.tsv cannot be read"),
        ("--tasks demo_rte --models {encoder} --output_dir {folder}/something/grid", "something is a file"),
        ("--tasks demo_rte --models {encoder} --output_dir {folder}", "holds something that is not a grid"),
        ("--tasks demo_rte --models {encoder} --output_dir {damaged}", "grid.json is damaged"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: str, message: str, tmp_path: Path, tiny_encoder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "something").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "grid.json").write_text('{"runs": {"a')
    filled = arguments.format(folder=tmp_path, encoder=tiny_encoder, damaged=tmp_path / "damaged").split()
    filled += [] if "--output_dir" in filled else ["--output_dir", str(tmp_path / "grid")]
    assert exit_code([*filled, "--precision", "fp32"]) == 2
    assert not (tmp_path / "grid").exists()
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_stopped_while_the_report_is_drawn(
    four_runs: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(folder: GridFolder) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("glue_runs.grid.command.work", lambda *arguments: None)
    monkeypatch.setattr("glue_runs.grid.command.write_report", stop)
    assert main([*four_runs, "--output_dir", str(tmp_path / "grid")]) == 130
    assert "Traceback" not in capfd.readouterr().err


def test_a_grid_started_as_a_process_of_several_is_refused(
    tmp_path: Path, tiny_encoder: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The processes would take different runs, and average the gradients of these."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = tmp_path / "grid"
    assert main(["--tasks", "demo_rte", "--models", tiny_encoder, "--output_dir", str(folder)]) == 2
    assert "start it without `accelerate launch` and `torchrun`" in capfd.readouterr().err
    assert not folder.exists()
