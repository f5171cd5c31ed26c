"""Fine-tune over a grid of learning rates, seeds and LBE settings: `python -m glue_runs.grid --help`.

The folder given as `--output_dir` holds the grid. The same command resumes where it was stopped, and may be started
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
from ..errors import InputError
from ..finetune.arguments import parse
from ..finetune.checks import check_batches, check_optimizer
from ..finetune.encoder import load_model
from ..finetune.fingerprint import fingerprint
from ..finetune.output import check_output_dir
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
        return _main(argv)
    except KeyboardInterrupt:
        print("Stopped; the same command resumes from here.", file=sys.stderr)
        return 130


def _main(argv: list[str]) -> int:
    try:
        grid, fixed = parse_grid(argv)
        runs = {run.name: run for run in plan_runs(grid, fixed)}
        folder = GridFolder(grid.output_dir)
        if grid.dry_run:
            _print_states(folder, list(runs))
            return 0
        check_output_dir(folder.path)
        quiet_libraries()
        descriptions = _check(folder, runs.values())
        for name in runs:
            folder.result(name)  # a damaged one is better found now than by the report
        engine = choose_engine(grid, list(runs.values()))
        command = shlex.join(["python", "-m", "glue_runs.grid", *without_token(argv)])
        folder.add(descriptions, command)
    except (ValueError, OSError) as error:
        return _report_error(error, 2)
    keep_models = "settings" if grid.push_to_hub and grid.keep_models != "all" else grid.keep_models
    work(engine, folder, runs, keep_models)
    try:
        print(write_report(folder))
        states = {name: folder.state(name) for name in runs}
    except (InputError, OSError) as error:  # nothing can be written or read any more
        return _report_error(error, 1)
    if "running" in states.values():
        print("Another process is still at work on this grid; it makes the report again when it ends.")
    failed = [name for name, state in states.items() if state not in ("done", "running")]
    for name in failed:
        print(f"failed: {name}: {_reason(folder, name)}", file=sys.stderr)
    pushed = push_chosen(folder, grid, runs.values()) if grid.push_to_hub else True
    if grid.demo:
        print(_DEMO_NOTE)
    return 1 if failed or not pushed else 0


def _report_error(error: Exception, code: int) -> int:
    print(f"error: {redact(' '.join(str(error).split()))}", file=sys.stderr)
    return code


def _reason(folder: GridFolder, name: str) -> str:
    path = folder.run_dir(name) / ERROR_NAME
    if not path.is_file():
        return f"it is {folder.state(name)}, and could not leave an {ERROR_NAME}"
    return f"{folder.error(name)} (traceback in {path})"


def _check(folder: GridFolder, runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """Raise for what would make runs fail, before the first of them starts; else what describes each, by name."""
    runs = list(runs)
    fingerprints: dict[tuple[str, str], dict[str, str]] = {}
    for run in runs:
        _, data_args, args = parse(run.argv())
        if (run.task, run.model) in fingerprints:
            continue
        examples = tokenized_rows(
            run.task, run.model, data_args.data_dir, data_args.max_length, data_args.pad_to_max_length
        )
        check_batches(split_as_told(examples, data_args), args)
        check_optimizer(load_model(run.model, get_task(run.task)), args)
        fingerprints[run.task, run.model] = fingerprint(run.model, examples)
    return describe(folder, runs, fingerprints)


def _print_states(folder: GridFolder, names: list[str]) -> None:
    states = {name: folder.state(name) for name in names}
    for name, state in states.items():
        print(f"{state:>11}  {name}")
    print(f"{len(names)} runs: {', '.join(f'{count} {state}' for state, count in Counter(states.values()).items())}")
