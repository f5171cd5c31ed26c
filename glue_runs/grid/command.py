"""Fine-tune over a grid of learning rates, seeds and LBE settings: `python -m glue_runs.grid --help`.

The folder given as `--output_dir` holds the grid. The same command goes on where it was stopped, and may be started
several times at once: the processes share the runs.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..analysis.report import write_report
from ..analysis.store import ERROR_NAME, GridFolder
from ..finetune.arguments import parse
from ..finetune.checks import check_batches
from ..finetune.encoder import load_model
from ..finetune.fingerprint import fingerprint
from ..finetune.run import split_as_told, tokenized_rows
from ..redaction import redact, without_token
from ..tasks.glue import get_task
from .engines import choose_engine, work
from .plan import Run, parse_grid, plan_runs
from .progress import quiet_libraries
from .push_chosen import push_chosen
from .reuse import describe

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
        descriptions = _check(folder, runs.values())
        for name in runs:
            folder.result(name)  # a damaged one is better found now than by the report
        engine = choose_engine(grid)
        command = shlex.join(["python", "-m", "glue_runs.grid", *without_token(argv)])
        folder.add(descriptions, command)
    except ValueError as error:
        print(f"error: {redact(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    try:
        keep_models = "settings" if grid.push_to_hub and grid.keep_models != "all" else grid.keep_models
        work(engine, folder, runs, grid.measured, keep_models)
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


def _check(folder: GridFolder, runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """Raise for what would make runs fail, before the first of them starts; else what describes each, by name."""
    runs = list(runs)
    fingerprints: dict[tuple[str, str], dict[str, str]] = {}
    for run in runs:
        _, data_args, args = parse(run.argv(measured="hidden_states"))
        if (run.task, run.model) in fingerprints:
            continue
        examples = tokenized_rows(
            run.task, run.model, data_args.data_dir, data_args.max_length, data_args.pad_to_max_length
        )
        check_batches(split_as_told(examples, data_args), args)
        load_model(run.model, get_task(run.task))
        fingerprints[run.task, run.model] = fingerprint(run.model, examples)
    return describe(folder, runs, fingerprints)


def _print_states(folder: GridFolder, names: list[str]) -> None:
    states = {name: folder.state(name) for name in names}
    for name, state in states.items():
        print(f"{state:>11}  {name}")
    print(f"{len(names)} runs: {', '.join(f'{count} {state}' for state, count in Counter(states.values()).items())}")
