"""Executes the runs of a study, several at a time, and collects all raw results in one CSV file.

A study can be interrupted or killed at any time, its processes end with it, and the same command resumes with the runs
that are not in its file.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Protocol

import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm

from glue_runs.files import write_text
from glue_runs.grid.workers import do_in_workers


class Run(Protocol):
    @property
    def name(self) -> str:
        """Unique in the study."""


def main(
    description: str | None,
    plan: Callable[[pd.DataFrame], Iterable[Run]],
    execute: Callable[..., pd.DataFrame],
    path: Path,
) -> None:
    """The command line of a study.

    Args:
        plan: returns the runs in order, given the results so far. It is called again when all of them are done; the
            study ends when it has no new ones.
        execute: trains one run in a process with one thread, and returns its results, one or more rows; picklable.
        path: CSV file of all runs; the column `run` has their names.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry_run", action="store_true", help="Count the runs, and stop.")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="Number of runs at once.")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error(f"--workers must be at least 1, not {args.workers}")
    if args.dry_run:
        _missing(plan, path)
        return
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            while missing := _missing(plan, path):
                if failed := _execute(missing, execute, path, args.workers):
                    sys.exit(f"Failed: {failed} of {len(missing)} runs, see above. The same command tries them again.")
    except Timeout:
        sys.exit(f"error: another process writes {path.name}: wait for it, or stop it.")
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command resumes.")


def _missing(plan: Callable[[pd.DataFrame], Iterable[Run]], path: Path) -> list[Run]:
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["run"])
    runs = {run.name: run for run in plan(done)}
    missing = [run for name, run in runs.items() if name not in set(done["run"])]
    print(f"{len(runs)} runs, {len(missing)} of them missing", flush=True)
    return missing


def _execute(missing: list[Run], execute: Callable[..., pd.DataFrame], path: Path, workers: int) -> int:
    failed = 0
    os.environ["OMP_NUM_THREADS"] = "1"  # of each worker
    finished = do_in_workers(partial(_attempt, execute), _died, missing, workers=workers, threads=1, max_retries=0)
    with closing(finished):
        for run, result in tqdm(finished, total=len(missing)):
            if isinstance(result, pd.DataFrame):
                _append(result.assign(run=run.name), path)
            else:
                failed += 1
                tqdm.write(f"{run.name}: {result}")
    return failed


def _attempt(execute: Callable[..., pd.DataFrame], run: Run, deaths: int) -> tuple[Run, pd.DataFrame | str]:
    """The results of a run, or its error."""
    try:
        return run, execute(run)
    except Exception as error:
        return run, repr(error)


def _died(run: Run) -> tuple[Run, pd.DataFrame | str]:
    return run, "its process died, perhaps for want of memory"


def _append(lines: pd.DataFrame, path: Path) -> None:
    """Write the whole file atomically, because the process may be killed at any time."""
    before = [pd.read_csv(path)] if path.exists() else []
    write_text(path, pd.concat([*before, lines]).to_csv(index=False, lineterminator="\n"))
