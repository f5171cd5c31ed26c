"""The folder of a grid: its runs, and the files that each of them wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError
from ..files import write_json
from ..finetune.checkpoints import holds_checkpoint, last_checkpoint
from ..finetune.fingerprint import changed_parts
from ..finetune.record import RESULT_NAME, read_record
from .selection import runs_to_keep
from .shapes import COMPARE_BY, TRAINED_ON, Grid, check_record, read_grid
from .table import tabulate

GRID_NAME = "grid.json"
ERROR_NAME = "error.txt"


class GridFolder:
    """`grid.json` (the wanted runs, and the commands that added them), `runs/NAME/` and `locks/NAME.lock`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """The description of each wanted run, by name; `InputError` if there is no grid, or its file is damaged."""
        return self._read()["runs"]

    @property
    def commands(self) -> list[str]:
        """The command lines that added runs to the grid; errors as for `runs`."""
        return self._read()["commands"]

    def add(self, runs: dict[str, dict[str, Any]], command: str) -> None:
        """Add these runs to those that the grid wants.

        Raises:
            InputError: the folder belongs to something else, holds the record of another run under one of the names,
                or one of the runs would be done behind a link; or as for `merge`.
        """
        if not (self.path / GRID_NAME).is_file() and self.path.exists():
            # Another process may be making this grid at this moment.
            foreign = [path for path in self.path.iterdir() if not path.name.startswith(("runs", "locks", GRID_NAME))]
            if foreign and not all((self.path / name).is_dir() for name in ("runs", "locks")):
                raise InputError(f"{self.path} holds something that is not a grid: give another --output_dir.")
        for name, description in runs.items():
            begun = os.path.lexists(self.run_dir(name)) and self._read_record(name, description) is None
            if begun and self.is_linked(name):  # the run begins with emptying its folder
                raise InputError(
                    f"{self.run_dir(name)} is a link, or inside one; runs are not resumed there: replace the link by "
                    "the folder."
                )
        for name in ("runs", "locks"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        with self.lock("grid"):
            commands = list(dict.fromkeys([*self._known["commands"], command]))
            write_json(self.path / GRID_NAME, {"commands": commands, "runs": self.merge(runs)})

    def merge(self, runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The runs that the grid would have with these added, by name.

        Runs that are compared must be trained on the same weights and examples. Those that have not begun take the
        digests of the added runs; those that began before digests were recorded stay without.

        Raises:
            InputError: a run that has begun was trained on something else than the added runs it is compared with.
        """
        known = self._known["runs"]
        merged = {**known, **runs}
        wanted = {_compared_by(each): each[TRAINED_ON] for each in runs.values() if TRAINED_ON in each}
        for name, description in merged.items():
            now = wanted.get(_compared_by(description))
            if now is None:
                continue
            before = known.get(name, {}).get(TRAINED_ON)
            begun = self.has_begun(name, description)
            if begun and before is not None and (changed := changed_parts(before, now)):
                raise InputError(
                    f"{name} was trained on other {' and '.join(changed)} than the runs wanted now, and would be "
                    f"compared with them: give another --output_dir, or delete {self.run_dir(name)}."
                )
            trained_on = before if begun else now
            rest = {key: value for key, value in description.items() if key != TRAINED_ON}
            merged[name] = rest if trained_on is None else {**rest, TRAINED_ON: trained_on}
        return merged

    def has_begun(self, name: str, description: dict[str, Any]) -> bool:
        """Whether a run is done, running, or has a checkpoint to resume from; any other starts anew."""
        if self.state(name) in ("done", "running"):
            return True
        return last_checkpoint(self.run_dir(name), description["beta"]) is not None

    @property
    def _known(self) -> Grid:
        """The content of `grid.json`; empty before the first command has written it."""
        return self._read() if (self.path / GRID_NAME).is_file() else Grid(commands=[], runs={})

    def _read(self) -> Grid:
        path = self.path / GRID_NAME
        if not path.is_file():
            raise InputError(f"{self.path} has no {GRID_NAME}: it is not the folder of a grid.")
        status = path.stat()
        return _read_version(path, status.st_mtime_ns, status.st_ino)

    def run_dir(self, name: str) -> Path:
        """The folder of a run."""
        return self.path / "runs" / name

    def is_linked(self, name: str) -> bool:
        """Whether the folder of a run is a link, or inside one: nothing in it is deleted or pushed."""
        return self.run_dir(name).is_symlink() or (self.path / "runs").is_symlink()

    @contextmanager
    def lock(self, name: str, timeout: float = -1) -> Iterator[bool]:
        """Hold a lock that ends with the process; gives False if another process holds it for `timeout` seconds."""
        path = self.path / "locks" / f"{name}.lock"
        lock = FileLock(path)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}): make {self.path} writable.") from error
        try:
            yield True
        finally:
            lock.release()

    def result(self, name: str) -> dict[str, Any] | None:
        """The record of a finished run, with its description in the grid; None if the run is not done.

        Raises:
            InputError: the record is damaged, or belongs to another run.
        """
        return self._read_record(name, self._known["runs"].get(name))

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of the finished runs, by name, in the order of the grid."""
        return {name: record for name in self.runs if (record := self.result(name)) is not None}

    def _read_record(self, name: str, description: dict[str, Any] | None) -> dict[str, Any] | None:
        record = read_record(self.run_dir(name))
        if record is None or description is None:
            return record
        check_record(self.run_dir(name) / RESULT_NAME, record, description)
        return {**record, **description}

    def state(self, name: str) -> str:
        """`done`, `failed`, `running` (a process holds its lock), `interrupted` or `missing`."""
        if self.result(name) is not None:
            return "done"
        folder = self.run_dir(name)
        if (folder / ERROR_NAME).is_file():
            return "failed"
        if not folder.is_dir():
            return "missing"
        with self.lock(name, timeout=0) as free:
            return "interrupted" if free else "running"

    def error(self, name: str) -> str:
        """Last line of the traceback of a failed run."""
        lines = (self.run_dir(name) / ERROR_NAME).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def prune(self, keep_models: str, runs: Collection[str], also: Collection[str] = ()) -> None:
        """Remove the checkpoints of finished runs, and the models that are not kept; links are never followed.

        Args:
            keep_models: which models to keep, as for `runs_to_keep`.
            runs: names of the runs that are pruned; an earlier command may have kept the models of others.
            also: names of further runs whose models are kept.
        """
        with self.lock("grid"):
            results = tabulate(self.records())
            kept = runs_to_keep(results, keep_models) | set(also)
            for name in results["name"]:
                if name in runs and not self.is_linked(name):
                    _clean(self.run_dir(name), keep_model=name in kept)


def _compared_by(description: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(description[key] for key in COMPARE_BY)


def _clean(folder: Path, keep_model: bool) -> None:
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_dir():
            if path.is_dir() or (path.name != RESULT_NAME and not keep_model):
                path.unlink()
        elif holds_checkpoint(path):
            shutil.rmtree(path)


@lru_cache(maxsize=1)
def _read_version(path: Path, modified: int, inode: int) -> Grid:
    """Cached: the file is read for every run, but changes only when runs are added."""
    return read_grid(path)
