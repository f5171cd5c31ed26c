"""The folder of a grid: which runs it has, and what each of them left."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import InputError
from ..finetune.record import RESULT_NAME, SETTING, SETUP, read_json, read_record, write_json
from ..tasks.glue import get_task

GRID_NAME = "grid.json"
ERROR_NAME = "error.txt"

_KEPT_ONE_OF = {"best": [*SETUP, "method"], "settings": [*SETUP, "method", *SETTING]}


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
        """Want these runs, too."""
        if not (self.path / GRID_NAME).is_file() and self.path.exists():
            # Another process may be making this grid at this moment.
            foreign = [path for path in self.path.iterdir() if not path.name.startswith(("runs", "locks", GRID_NAME))]
            if foreign:
                raise InputError(f"{self.path} holds something that is not a grid: give another --output_dir.")
        for name in ("runs", "locks"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        with self.lock("grid"):
            known = self._read() if (self.path / GRID_NAME).is_file() else {"commands": [], "runs": {}}
            commands = [*known["commands"], *([] if command in known["commands"] else [command])]
            write_json(self.path / GRID_NAME, {"commands": commands, "runs": {**known["runs"], **runs}})

    def _read(self) -> dict[str, Any]:
        if not (self.path / GRID_NAME).is_file():
            raise InputError(f"{self.path} has no {GRID_NAME}: it is not the folder of a grid.")
        return read_json(self.path / GRID_NAME)

    def folder(self, name: str) -> Path:
        return self.path / "runs" / name

    @contextmanager
    def lock(self, name: str, timeout: float = -1) -> Iterator[bool]:
        """Hold a lock that ends with the process, however it ends; False if another holds it for `timeout` seconds."""
        lock = FileLock(self.path / "locks" / f"{name}.lock")
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def result(self, name: str) -> dict[str, Any] | None:
        """The record of a run that is done, else None."""
        return read_record(self.folder(name))

    def state(self, name: str) -> str:
        """`done`, `failed`, `running` (some process holds its lock), `interrupted` or `missing`."""
        folder = self.folder(name)
        if (folder / RESULT_NAME).is_file():
            return "done"
        if (folder / ERROR_NAME).is_file():
            return "failed"
        if not folder.is_dir():
            return "missing"
        with self.lock(name, timeout=0) as free:
            return "interrupted" if free else "running"

    def error(self, name: str) -> str:
        """Last line of the traceback of a run that failed."""
        lines = (self.folder(name) / ERROR_NAME).read_text(encoding="utf-8").strip().splitlines()
        return lines[-1] if lines else ""

    def tidy(self, keep_models: str, also: Collection[str] = ()) -> None:
        """Remove what finished runs no longer need.

        Args:
            keep_models: whose model to keep. "none"; "best": of those that differ only in learning rate, alpha,
                beta and seed the one with the best validation score; "settings": of those that differ only in the
                seed; "all".
            also: names of runs whose model is kept in any case.
        """
        with self.lock("grid"):
            done = {name: result for name in self.runs if (result := self.result(name)) is not None}
            keys = _KEPT_ONE_OF.get(keep_models, [])
            best: dict[tuple[Any, ...], str] = {}
            for name in sorted(done, key=lambda name: _validation_score(done[name])):
                best[tuple(done[name][key] for key in keys)] = name
            kept = {"none": [], "all": list(done)}.get(keep_models, best.values())
            for name in done:
                self._clean(self.folder(name), name in kept or name in also)

    @staticmethod
    def _clean(folder: Path, keep_model: bool) -> None:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != RESULT_NAME and not keep_model:
                path.unlink()


def _validation_score(result: dict[str, Any]) -> float:
    score = result["metrics"]["validation"][get_task(result["task"]).scores[-1]]
    return -math.inf if math.isnan(score) else score
