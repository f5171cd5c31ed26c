"""The folder of a grid: which runs it has, and what each of them left."""

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
from ..finetune.record import RESULT_NAME, read_record, write_json
from .selection import runs_to_keep
from .shapes import Grid, check_record, read_grid
from .table import tabulate

GRID_NAME = "grid.json"
ERROR_NAME = "error.txt"


class GridFolder:
    """`grid.json` (the runs that are wanted, and the commands that want them), `runs/NAME/`, `locks/NAME.lock`.

    Raises:
        InputError: the folder is that of something else, or one of its files is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """What describes each wanted run, by name."""
        return self._read()["runs"]

    @property
    def commands(self) -> list[str]:
        """The command lines that made the grid what it is."""
        return self._read()["commands"]

    def add(self, runs: dict[str, dict[str, Any]], command: str) -> None:
        """Want these runs, too.

        Raises:
            InputError: the folder is that of something else, holds the record of another run under their names, or
                one of them would be done behind a link.
        """
        if not (self.path / GRID_NAME).is_file() and self.path.exists():
            # Another process may be making this grid at this moment.
            foreign = [path for path in self.path.iterdir() if not path.name.startswith(("runs", "locks", GRID_NAME))]
            if foreign:
                raise InputError(f"{self.path} holds something that is not a grid: give another --output_dir.")
        for name, description in runs.items():
            begun = os.path.lexists(self.run_dir(name)) and self._read_record(name, description) is None
            if begun and self.is_linked(name):  # the run begins with emptying its folder
                raise InputError(
                    f"{self.run_dir(name)} is, or lies behind, a link, and no run is resumed there: put the folder "
                    "itself in its place."
                )
        for name in ("runs", "locks"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        with self.lock("grid"):
            known: Grid = self._read() if (self.path / GRID_NAME).is_file() else {"commands": [], "runs": {}}
            commands = [*known["commands"], *([] if command in known["commands"] else [command])]
            write_json(self.path / GRID_NAME, {"commands": commands, "runs": {**known["runs"], **runs}})

    def _read(self) -> Grid:
        path = self.path / GRID_NAME
        if not path.is_file():
            raise InputError(f"{self.path} has no {GRID_NAME}: it is not the folder of a grid.")
        status = path.stat()
        return _read_version(path, status.st_mtime_ns, status.st_ino)

    def run_dir(self, name: str) -> Path:
        """Where a run leaves its files."""
        return self.path / "runs" / name

    def is_linked(self, name: str) -> bool:
        """Whether the folder of a run is a link, or lies in one: nothing in it is deleted or pushed."""
        return self.run_dir(name).is_symlink() or (self.path / "runs").is_symlink()

    @contextmanager
    def lock(self, name: str, timeout: float = -1) -> Iterator[bool]:
        """Hold a lock that ends with the process, however it ends; False if another holds it for `timeout` seconds."""
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
        """The record of a run that is done, with what describes it in the grid; else None.

        Raises:
            InputError: the record is damaged or that of another run.
        """
        known = self.runs if (self.path / GRID_NAME).is_file() else {}
        return self._read_record(name, known.get(name))

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of the runs that are done, by name, in the order of the grid."""
        return {name: record for name in self.runs if (record := self.result(name)) is not None}

    def _read_record(self, name: str, description: dict[str, Any] | None) -> dict[str, Any] | None:
        record = read_record(self.run_dir(name))
        if record is None or description is None:
            return record
        check_record(self.run_dir(name) / RESULT_NAME, record, description)
        return {**record, **description}

    def state(self, name: str) -> str:
        """`done`, `failed`, `running` (some process holds its lock), `interrupted` or `missing`."""
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
        """Last line of the traceback of a run that failed."""
        lines = (self.run_dir(name) / ERROR_NAME).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def prune(self, keep_models: str, also: Collection[str] = ()) -> None:
        """Remove what finished runs no longer need; links are removed, and what they point to stays.

        Args:
            keep_models: whose model to keep, as `runs_to_keep` takes it.
            also: names of runs whose model is kept in any case.
        """
        with self.lock("grid"):
            results = tabulate(self.records())
            kept = runs_to_keep(results, keep_models) | set(also)
            for name in results["name"]:
                if not self.is_linked(name):
                    _clean(self.run_dir(name), keep_model=name in kept)


def _clean(folder: Path, keep_model: bool) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_dir() or (path.name != RESULT_NAME and not keep_model):
            path.unlink()


@lru_cache(maxsize=1)
def _read_version(path: Path, modified: int, inode: int) -> Grid:
    """Every run asks for the file, which changes only with what the grid wants."""
    return read_grid(path)
