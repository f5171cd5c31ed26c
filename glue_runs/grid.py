"""Fine-tune over a grid of learning rates, seeds and LBE settings: `python -m glue_runs.grid --help`.

The folder given as `--output_dir` holds the grid. The same command goes on where it was stopped, and may be started
several times at once: the processes share the runs.
"""

from __future__ import annotations

import gc
import shlex
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from .arguments import parse
from .card import write_card
from .finetune import last_checkpoint, prepare, tokenized_rows
from .finetune import run as finetune
from .plan import Run, parse_grid, plan_runs
from .progress import quiet_libraries, show_run
from .push_grid import push_chosen
from .redaction import redact, without_token
from .report import write_report
from .result import RESULT_NAME, write_json
from .store import ERROR_NAME, GridFolder
from .tasks import get_task

_DEMO_NOTE = "This is a demonstration on generated sentences. It is not GLUE: its scores say nothing about LBE there."


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 if a run or a push failed; 2, with one line on standard error, for input that cannot be run."""
    argv = sys.argv[1:] if argv is None else argv
    if "--demo" in argv:
        print(_DEMO_NOTE)
    try:
        grid, fixed = parse_grid(argv)
        runs = {run.name: run for run in plan_runs(grid, fixed)}
        folder = GridFolder(grid.output_dir)
        if grid.dry_run:
            _print_states(folder, list(runs))
            return 0
        quiet_libraries()
        _check(runs.values())
        for name in runs:
            folder.result(name)  # a damaged one is better found now than by the report
        command = shlex.join(["python", "-m", "glue_runs.grid", *without_token(argv)])
        folder.add({name: run.description for name, run in runs.items()}, command)
    except ValueError as error:
        print(f"error: {redact(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    try:
        keep_models = "settings" if grid.push_to_hub and grid.keep_models != "all" else grid.keep_models
        work(folder, runs, grid.measured, keep_models)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    print(write_report(folder))
    if any(folder.state(name) == "running" for name in runs):
        print("Another process is still at work on this grid; it makes the report again when it ends.")
    failed = [name for name in runs if folder.state(name) == "failed"]
    for name in failed:
        traceback_in = folder.folder(name) / ERROR_NAME
        print(f"failed: {name}: {folder.error(name)} (traceback in {traceback_in})", file=sys.stderr)
    pushed = push_chosen(folder, grid, runs.values()) if grid.push_to_hub else True
    if grid.demo:
        print(_DEMO_NOTE)
    return 1 if failed or not pushed else 0


def work(folder: GridFolder, runs: dict[str, Run], measured: str, keep_models: str) -> None:
    """Do all runs that are not done and that no other process is doing.

    Args:
        folder: where they go.
        runs: by name, in order.
        measured: activations whose entropy the baseline logs.
        keep_models: as `GridFolder.tidy` takes it.
    """
    started = time.time()
    todo = [name for name in runs if folder.state(name) != "done"]
    with tqdm(total=len(runs), initial=len(runs) - len(todo), desc="grid", disable=None) as bar:
        for name in todo:
            with folder.lock(name, timeout=1) as ours:  # whoever only asks for its state lets go of it at once
                error = folder.folder(name) / ERROR_NAME
                failed_elsewhere = error.is_file() and error.stat().st_mtime > started
                if ours and not failed_elsewhere and folder.state(name) != "done":
                    line = execute(folder.folder(name), runs[name], measured)
                    tqdm.write(f"{name}: {line}")
            bar.update()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            folder.tidy(keep_models)
    folder.tidy(keep_models)


def execute(path: Path, run: Run, measured: str) -> str:
    """Do one run, from its last checkpoint if it has one, and say in a line how it went."""
    path.mkdir(exist_ok=True)
    checkpoint = last_checkpoint(str(path))
    for leftover in path.iterdir():
        if leftover.is_file():
            leftover.unlink()
        elif str(leftover) != checkpoint:
            shutil.rmtree(leftover)
    argv = [*run.argv(measured), "--output_dir", str(path), "--disable_tqdm", "true"]
    if checkpoint is not None:
        argv += ["--resume_from_checkpoint", checkpoint]
    task = get_task(run.task)
    try:
        arguments = parse(argv)
        trainer, splits = prepare(*arguments)
        show_run(trainer, run.name)
        record = finetune(trainer, splits, task)
        write_card(trainer, *arguments, record["metrics"])
    except Exception as error:  # whatever it is, the other runs go on
        (path / ERROR_NAME).write_text(redact(traceback.format_exc()), encoding="utf-8")
        return f"failed: {redact(str(error))}"
    write_json(path / RESULT_NAME, {**run.description, **record})
    scores = [
        f"{split} {task.scores[-1]} {values[task.scores[-1]]:.4f}" for split, values in record["metrics"].items()
    ]
    return ", ".join([*scores, "resumed" if record["seconds"] is None else f"{record['seconds']:.0f} s"])


def _check(runs: Iterable[Run]) -> None:
    """Raise for what would make runs fail, before the first of them starts."""
    for run in runs:
        _, data_args, _ = parse(run.argv(measured="hidden_states"))
        tokenized_rows(run.task, run.model, data_args.data_dir, data_args.max_length, data_args.pad_to_max_length)


def _print_states(folder: GridFolder, names: list[str]) -> None:
    states = {name: folder.state(name) for name in names}
    for name, state in states.items():
        print(f"{state:>11}  {name}")
    print(f"{len(names)} runs: {', '.join(f'{count} {state}' for state, count in Counter(states.values()).items())}")


if __name__ == "__main__":
    sys.exit(main())
