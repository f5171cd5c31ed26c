"""Executes the runs of a study, several at a time, and collects all raw results in one CSV file.

A study can be killed at any time: the same command resumes with the runs that are not in its file.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import pandas as pd
from filelock import FileLock, Timeout
from tqdm import tqdm


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


def _missing(plan: Callable[[pd.DataFrame], Iterable[Run]], path: Path) -> list[Run]:
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["run"])
    runs = {run.name: run for run in plan(done)}
    missing = [run for name, run in runs.items() if name not in set(done["run"])]
    print(f"{len(runs)} runs, {len(missing)} of them missing", flush=True)
    return missing


def _execute(missing: list[Run], execute: Callable[..., pd.DataFrame], path: Path, workers: int) -> int:
    failed = 0
    os.environ["OMP_NUM_THREADS"] = "1"  # of each worker
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = {pool.submit(execute, run): run for run in missing}
        for future in tqdm(as_completed(futures), total=len(futures)):
            if future.exception() is None:
                _append(future.result().assign(run=futures[future].name), path)
            else:
                failed += 1
                tqdm.write(f"{futures[future].name}: {future.exception()!r}")
    return failed


def _append(lines: pd.DataFrame, path: Path) -> None:
    """Write the file atomically, because the process may be killed at any time."""
    before = [pd.read_csv(path)] if path.exists() else []
    unfinished = path.with_suffix(".unfinished")
    pd.concat([*before, lines]).to_csv(unfinished, index=False)
    unfinished.replace(path)
