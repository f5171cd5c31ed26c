"""Executes one run of a grid, in any process."""

from __future__ import annotations

import gc
import os
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..analysis.shapes import TRAINED_ON
from ..analysis.store import ERROR_NAME, GridFolder
from ..errors import InputError
from ..files import write_json
from ..finetune.arguments import parse
from ..finetune.card import write_card
from ..finetune.checkpoints import DamagedCheckpointError, checkpoints, holds_checkpoint, is_complete
from ..finetune.fingerprint import changed_parts, fingerprint_encoder
from ..finetune.record import RESULT_NAME
from ..finetune.run import prepare
from ..finetune.run import run as finetune
from ..redaction import printable, redact
from ..tasks.glue import get_task
from .plan import Run
from .progress import show_run

AFTER_A_DEATH = 10
"""Seconds to wait for the lock of a process that died: its data loaders keep it for some seconds."""

Failure = tuple[int, int, int]
"""Identifies the `error.txt` of a failure: inode, size in bytes, and time of change in nanoseconds."""


@dataclass(frozen=True)
class Seen:
    """What was known of a run when the grid started."""

    failure: Failure | None = None
    """The failure that an earlier attempt left."""
    trained_on: dict[str, str] | None = None
    """Digests of the weights and examples that the grid recorded for it."""


def see(folder: GridFolder, name: str) -> Seen:
    """What is known of a run now."""
    try:
        found = (folder.run_dir(name) / ERROR_NAME).stat()
        failure = found.st_ino, found.st_size, found.st_mtime_ns
    except OSError:
        failure = None
    return Seen(failure, folder.runs[name].get(TRAINED_ON))


def attempt(folder: GridFolder, run: Run, before: Seen, patience: float = 1) -> str | None:
    """Do a run unless it is done, another process is doing it, or it has failed since the grid started.

    Args:
        folder: receives its files.
        run: the run.
        before: what was known of the run when the grid started. A new failure means that another process tried it
            since; new digests mean that another grid wants it trained on something else.
        patience: seconds to wait for its lock, which a process that only asks for its state releases at once.

    Returns:
        A line that reports the result; None if the run was left alone.
    """
    try:
        with folder.lock(run.name, timeout=patience) as ours:
            if not ours or folder.state(run.name) == "done":
                return None
            with folder.lock("grid"):  # until the run has begun, no other grid may change its digests
                now = see(folder, run.name)
                if now.failure not in (None, before.failure):
                    return None
                if now.trained_on != before.trained_on:
                    return f"{run.name}: left alone, because another grid in this folder trains it on something else"
                folder.run_dir(run.name).mkdir(exist_ok=True)
            line = execute(folder.run_dir(run.name), run, now.trained_on)
    except Exception as error:  # as where the lock cannot be written; the other runs continue
        line = f"failed: {redact(printable(str(error)))}"
    _release_memory()
    return f"{run.name}: {line}"


def _release_memory() -> None:
    """Return the memory of a run; end this process, which is replaced, if its GPU can no longer be used."""
    gc.collect()
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:  # as after an index out of range in a kernel: all further runs would fail
        os._exit(1)


def abandon(folder: GridFolder, run: Run, reason: str) -> str | None:
    """Record that the process of a run died, and report it in a line; None if another process took the run over."""
    try:
        with folder.lock(run.name, timeout=AFTER_A_DEATH) as ours:
            if not ours or folder.state(run.name) == "done":
                return None
            line = record_failure(folder.run_dir(run.name), reason, reason)
    except Exception as error:
        line = f"failed: {reason} ({redact(printable(str(error)))})"
    return f"{run.name}: {line}"


def execute(path: Path, run: Run, trained_on: dict[str, str] | None = None) -> str:
    """Do one run, from its last usable checkpoint if there is one, and report the result in a line."""
    try:
        changed = changed_parts(trained_on or {}, fingerprint_encoder(run.model))
        if changed:
            raise InputError(
                f"The {' and '.join(changed)} of {run.model} changed after the grid started: start it again."
            )
        return _execute(path, run)
    except Exception as error:  # of any kind; the other runs continue
        return record_failure(path, str(error) or repr(error), traceback.format_exc())


def record_failure(path: Path, reason: str, details: str) -> str:
    """Write the details of a failure into the folder of a run, and report the reason in a line.

    If the details cannot be written, the line adds why: that may be the reason of the failure itself.
    """
    line = f"failed: {redact(printable(reason.splitlines()[0]))}"
    try:
        path.mkdir(exist_ok=True)
        (path / ERROR_NAME).write_text(redact(printable(details)), encoding="utf-8")
    except OSError as error:
        line += f" ({ERROR_NAME} cannot be written: {error})"
    return line


def _execute(path: Path, run: Run) -> str:
    path.mkdir(exist_ok=True)
    found = checkpoints(path)
    usable = [checkpoint for checkpoint in found if is_complete(checkpoint, run.beta)]
    notes = [f"{checkpoint.name} is incomplete" for checkpoint in found if checkpoint not in usable]
    for leftover in path.iterdir():
        if leftover.is_symlink() or not leftover.is_dir():  # a named pipe, too
            leftover.unlink()
        elif holds_checkpoint(leftover) and leftover not in usable:
            shutil.rmtree(leftover)
    set_aside: dict[Path, Path] = {}
    damage = ""
    while True:
        checkpoint = next((checkpoint for checkpoint in usable if checkpoint not in set_aside), None)
        try:
            record = _train(path, run, checkpoint)
            break
        except DamagedCheckpointError as error:
            assert checkpoint is not None
            damage = damage or repr(error.__cause__)  # not the error itself, whose frames keep the model in memory
            notes.append(str(error).replace(str(checkpoint), checkpoint.name))
            # Under this name, Trainer does not count it among the checkpoints that it keeps.
            set_aside[checkpoint] = checkpoint.rename(path / f"_{checkpoint.name}")
        except Exception as error:
            if repr(error) == damage:  # the run itself fails: the checkpoints may be intact
                for name, place in set_aside.items():
                    if not name.exists():
                        place.rename(name)
            raise
    write_json(path / RESULT_NAME, {**run.description, **record})
    return _summary(run, record, notes)


def _train(path: Path, run: Run, checkpoint: Path | None) -> dict[str, Any]:
    argv = [*run.argv(), "--output_dir", str(path), "--disable_tqdm", "true"]
    if checkpoint is not None:
        argv += ["--resume_from_checkpoint", str(checkpoint)]
    arguments = parse(argv)
    trainer, splits = prepare(*arguments)
    show_run(trainer, run.name)
    record = finetune(trainer, splits, get_task(run.task))
    write_card(trainer, *arguments, record["metrics"])
    return record


def _summary(run: Run, record: dict[str, Any], notes: list[str]) -> str:
    score = get_task(run.task).main_metric
    words = [f"{split} {score} {values[score]:.4f}" for split, values in record["metrics"].items()]
    words += ["diverged"] if record["diverged"] else []
    words.append("resumed" if record["seconds"] is None else f"{record['seconds']:.0f} s")
    return ", ".join([*words, *notes])
