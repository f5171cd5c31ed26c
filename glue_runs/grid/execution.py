"""One run of a grid, in whichever process it is done."""

from __future__ import annotations

import gc
import shutil
import traceback
from pathlib import Path

import torch

from ..analysis.store import ERROR_NAME, GridFolder
from ..finetune.arguments import parse
from ..finetune.card import write_card
from ..finetune.record import RESULT_NAME, write_json
from ..finetune.run import last_checkpoint, prepare
from ..finetune.run import run as finetune
from ..redaction import redact
from ..tasks.glue import get_task
from .plan import Run
from .progress import show_run


def attempt(folder: GridFolder, run: Run, measured: str, since: float, patience: float = 1) -> str | None:
    """Do a run unless it is done, another process is doing it, or it failed in the meantime.

    Args:
        folder: where it goes.
        run: what it is.
        measured: activations whose entropy the baseline logs.
        since: start of the meantime, in seconds since the epoch.
        patience: seconds to wait for another process to let go of it; who only asks for its state does so at once.

    Returns:
        A line that says how it went; None if it was left alone.
    """
    with folder.lock(run.name, timeout=patience) as ours:
        error = folder.run_dir(run.name) / ERROR_NAME
        failed_elsewhere = error.is_file() and error.stat().st_mtime > since
        if not ours or failed_elsewhere or folder.state(run.name) == "done":
            return None
        line = execute(folder.run_dir(run.name), run, measured)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return f"{run.name}: {line}"


def execute(path: Path, run: Run, measured: str) -> str:
    """Do one run, from its last checkpoint if it has one, and say in a line how it went."""
    path.mkdir(exist_ok=True)
    checkpoint = last_checkpoint(str(path))
    for leftover in path.iterdir():
        if leftover.is_file():
            leftover.unlink()
        elif str(leftover) != checkpoint:
            shutil.rmtree(leftover)
    argv = [*run.argv(measured), "--output_dir", str(path), "--disable_tqdm", "true"]
    if checkpoint is not None:
        argv += ["--resume_from_checkpoint", checkpoint]
    task = get_task(run.task)
    try:
        arguments = parse(argv)
        trainer, splits = prepare(*arguments)
        show_run(trainer, run.name)
        record = finetune(trainer, splits, task)
        write_card(trainer, *arguments, record["metrics"])
    except Exception as error:  # whatever it is, the other runs go on
        (path / ERROR_NAME).write_text(redact(traceback.format_exc()), encoding="utf-8")
        return f"failed: {redact(str(error))}"
    write_json(path / RESULT_NAME, {**run.description, **record})
    scores = [
        f"{split} {task.main_metric} {values[task.main_metric]:.4f}" for split, values in record["metrics"].items()
    ]
    return ", ".join([*scores, "resumed" if record["seconds"] is None else f"{record['seconds']:.0f} s"])
