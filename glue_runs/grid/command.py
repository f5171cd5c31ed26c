"""The command `python -m glue_runs.grid`: fine-tuning over learning rates, seeds and LBE settings.

The folder given as `--output_dir` holds the grid. The same command resumes the grid where it stopped, and may be
started several times at once: the processes share the runs.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..analysis.report import write_report
from ..analysis.shapes import TRAINED_ON
from ..analysis.store import ERROR_NAME, GridFolder
from ..errors import InputError
from ..finetune.arguments import parse
from ..finetune.checks import check_first_batch
from ..finetune.fingerprint import fingerprint
from ..finetune.output import check_output_dir
from ..finetune.run import prepare, tokenized_examples
from ..redaction import report_error, without_token
from .arguments import parse_grid
from .engines import choose_engine, work
from .plan import Run, plan_runs
from .progress import quiet_libraries
from .push_chosen import push_chosen

_DEMO_NOTE = (
    "This is a demonstration on generated sentences. It is not GLUE: its scores do not show how LBE performs there."
)


def main(argv: list[str] | None = None) -> int:
    """Do a grid; return 0, 1 if a run or a push failed, 130 after Ctrl-C, or 2 for input that cannot be run."""
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
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                "A grid starts its processes itself: start it without `accelerate launch` and `torchrun`. It uses all "
                "GPUs of this machine, and with --engine ray those of several machines."
            )
        grid, fixed = parse_grid(argv)
        runs = {run.name: run for run in plan_runs(grid, fixed)}
        folder = GridFolder(grid.output_dir)
        if grid.dry_run:
            _print_states(folder, list(runs))
            return 0
        check_output_dir(folder.path)
        quiet_libraries()
        descriptions = _describe(runs.values())
        folder.merge(descriptions)
        for name in runs:
            folder.result(name)  # finds a damaged record now, not in the report
        engine = choose_engine(grid, list(runs.values()))
        command = shlex.join(["python", "-m", "glue_runs.grid", *without_token(argv)])
        folder.add(descriptions, command)
        unchecked = sum(TRAINED_ON not in folder.runs[name] for name in runs)
        if unchecked:
            print(f"{unchecked} runs began before what they are trained on was recorded: they are reused unchecked.")
    except Exception as error:  # any library may refuse an argument
        return report_error(error, 2)
    keep_models = "settings" if grid.push_to_hub and grid.keep_models != "all" else grid.keep_models
    work(engine, folder, runs, keep_models)
    try:
        print(write_report(folder))
        states = {name: folder.state(name) for name in runs}
    except (InputError, OSError) as error:  # files can no longer be written or read
        return report_error(error, 1)
    if "running" in states.values():
        print("Another process is still working on this grid; it makes the report again when it ends.")
    failed = [name for name, state in states.items() if state not in ("done", "running")]
    for name in failed:
        print(f"failed: {name}: {_reason(folder, name)}", file=sys.stderr)
    pushed = push_chosen(folder, grid, runs.values()) if grid.push_to_hub else True
    if grid.demo:
        print(_DEMO_NOTE)
    return 1 if failed or not pushed else 0


def _reason(folder: GridFolder, name: str) -> str:
    path = folder.run_dir(name) / ERROR_NAME
    if not path.is_file():
        return f"it is {folder.state(name)}, and could not leave an {ERROR_NAME}"
    return f"{folder.error(name)} (traceback in {path})"


def _describe(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """The description of each run, by name, with the digests of what it is trained on.

    Raises:
        InputError: all runs of a task and a model would fail.
        ValueError: all runs of a model that regularize the same activations would fail at their first batch.
    """
    descriptions: dict[str, dict[str, Any]] = {}
    fingerprints: dict[tuple[str, str], dict[str, str]] = {}
    tried: set[tuple[str, str | None]] = set()
    for run in runs:
        _, data_args, _ = parse(run.argv())
        if (run.task, run.model) not in fingerprints or (run.model, run.activations) not in tried:
            with tempfile.TemporaryDirectory() as folder:
                trainer, _ = prepare(*parse([*run.argv(), "--output_dir", folder]))
            check_first_batch(trainer)
            tried.add((run.model, run.activations))
        if (run.task, run.model) not in fingerprints:
            examples = tokenized_examples(
                run.task, run.model, data_args.data_dir, data_args.max_length, data_args.pad_to_max_length
            )
            fingerprints[run.task, run.model] = fingerprint(run.model, examples)
        descriptions[run.name] = {**run.description, TRAINED_ON: fingerprints[run.task, run.model]}
    return descriptions


def _print_states(folder: GridFolder, names: list[str]) -> None:
    states = {name: folder.state(name) for name in names}
    for name, state in states.items():
        print(f"{state:>11}  {name}")
    print(f"{len(names)} runs: {', '.join(f'{count} {state}' for state, count in Counter(states.values()).items())}")
