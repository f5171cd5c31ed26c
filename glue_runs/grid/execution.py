"""One run of a grid, in whichever process it is done."""

from __future__ import annotations

import gc
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..analysis.store import ERROR_NAME, GridFolder
from ..errors import InputError
from ..finetune.arguments import parse
from ..finetune.card import write_card
from ..finetune.checkpoints import DamagedCheckpointError, checkpoints, is_complete
from ..finetune.record import RESULT_NAME, write_json
from ..finetune.run import prepare
from ..finetune.run import run as finetune
from ..redaction import redact
from ..tasks.glue import get_task
from .plan import Run
from .progress import show_run
from .reuse import TRAINED_ON

AFTER_A_DEATH = 10
"""Seconds to wait for the lock of a process that died: its data loaders hold on to it for some of them."""

Failure = tuple[int, int, int]
"""Which file reports that a run failed: its inode, its size in bytes, and its time of change in nanoseconds."""


@dataclass(frozen=True)
class Seen:
    """What was known of a run as the grid started."""

    failure: Failure | None = None
    """The failure that it has left; two are the same only if they are one."""
    trained_on: dict[str, str] | None = None
    """Digests of the weights and examples that it is wanted with."""


def see(folder: GridFolder, name: str) -> Seen:
    """What is known of a run now."""
    try:
        found = (folder.run_dir(name) / ERROR_NAME).stat()
        failure = found.st_ino, found.st_size, found.st_mtime_ns
    except OSError:
        failure = None
    return Seen(failure, folder.runs[name].get(TRAINED_ON))


def attempt(folder: GridFolder, run: Run, before: Seen, patience: float = 1) -> str | None:
    """Do a run unless it is done, another process is doing it, or it failed in the meantime.

    Args:
        folder: where it goes.
        run: what it is.
        before: what was known of it as the grid started. With another failure it failed in the meantime; with other
            digests another grid wants it trained on something else than is loaded here.
        patience: seconds to wait for another process to let go of it; who only asks for its state does so at once.

    Returns:
        A line that reports how it went; None if it was left alone.
    """
    try:
        with folder.lock(run.name, timeout=patience) as ours:
            now = see(folder, run.name)
            failed_elsewhere = now.failure not in (None, before.failure)
            if not ours or failed_elsewhere or folder.state(run.name) == "done":
                return None
            if now.trained_on != before.trained_on:
                return f"{run.name}: left alone, another grid in this folder wants it trained on something else"
            line = execute(folder.run_dir(run.name), run)
    except (InputError, OSError) as error:  # there is no place for the lock
        line = f"failed: {error}"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return f"{run.name}: {line}"


def abandon(folder: GridFolder, run: Run, reason: str) -> str | None:
    """Give up a run whose process died, and report it in a line; None if another process has taken it over."""
    try:
        with folder.lock(run.name, timeout=AFTER_A_DEATH) as ours:
            if not ours or folder.state(run.name) == "done":
                return None
            line = give_up(folder.run_dir(run.name), reason, reason)
    except (InputError, OSError) as error:
        line = f"failed: {reason} ({error})"
    return f"{run.name}: {line}"


def execute(path: Path, run: Run) -> str:
    """Do one run, from its last usable checkpoint if it has one, and report in a line how it went."""
    try:
        return _execute(path, run)
    except Exception as error:  # whatever it is, the other runs go on
        return give_up(path, str(error) or repr(error), traceback.format_exc())


def give_up(path: Path, reason: str, details: str) -> str:
    """Leave in the folder of a run why it failed, in detail, and report the reason in a line.

    That the folder cannot be written may be the very reason.
    """
    line = f"failed: {redact(reason.splitlines()[0])}"
    try:
        path.mkdir(exist_ok=True)
        (path / ERROR_NAME).write_text(redact(details), encoding="utf-8")
    except OSError as error:
        line += f" ({ERROR_NAME} cannot be written: {error})"
    return line


def _execute(path: Path, run: Run) -> str:
    path.mkdir(exist_ok=True)
    found = checkpoints(path)
    usable = [checkpoint for checkpoint in found if is_complete(checkpoint, with_targets=run.beta > 0)]
    notes = [f"{checkpoint.name} is incomplete" for checkpoint in found if checkpoint not in usable]
    for leftover in path.iterdir():
        if leftover.is_file() or leftover.is_symlink():
            leftover.unlink()
        elif leftover not in usable:
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
            damage = damage or repr(error.__cause__)  # and not the error, whose frames hold the model
            notes.append(str(error).replace(str(checkpoint), checkpoint.name))
            # Where Trainer does not count it among the checkpoints that it keeps.
            set_aside[checkpoint] = checkpoint.rename(path / f"_{checkpoint.name}")
        except Exception as error:
            if repr(error) == damage:  # the run's own, which says nothing against the checkpoints
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
