"""Push the chosen run of each task of a grid."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ..analysis.selection import best_run
from ..analysis.store import GridFolder
from ..analysis.table import tabulate
from ..errors import InputError
from ..finetune.push import NoModelError, PushArguments, PushError, push
from ..finetune.record import COMPARE_BY
from ..redaction import redact
from .plan import GridArguments, Run


def push_chosen(folder: GridFolder, grid: GridArguments, runs: Iterable[Run]) -> bool:
    """Push the chosen run of each task whose runs are all done, and say how it went; False if a push failed.

    Where all went well, the models that are not kept for another reason are removed, but for the pushed ones.
    """
    # With one model, the runs of a task share all that they are compared by.
    compared = {run.task: {key: getattr(run, key) for key in COMPARE_BY} for run in runs}
    chosen = {task: choose_run(folder, shared) for task, shared in compared.items()}
    failed = False
    for task, name in chosen.items():
        if name is None:
            print(f"{task}: not pushed, its runs are not all done or have no scores; the same command resumes them.")
            continue
        options = PushArguments(hub_model_id=grid.repository(task), hub_token=grid.hub_token)
        run_dir = folder.run_dir(name)
        if folder.is_linked(name):
            remedy = "links are not pushed, put the folder itself in its place"
            print(f"error: {task}: {run_dir} is a link: {remedy}.", file=sys.stderr)
            failed = True
            continue
        try:
            print(f"{task}: pushed {name} to {push(run_dir, options)}")
        except NoModelError:  # it was done before there was a wish to push
            remedy = f"delete {run_dir} and start the grid again"
            print(f"error: {task}: {name} has not kept its model: {remedy}.", file=sys.stderr)
            failed = True
        except (InputError, PushError) as error:
            print(f"error: {task}: {redact(str(error), grid.hub_token)}", file=sys.stderr)
            failed = True
    if not failed and all(chosen.values()):
        folder.prune(grid.keep_models, also=[name for name in chosen.values() if name is not None])
    return not failed


def choose_run(folder: GridFolder, shared: dict[str, str]) -> str | None:
    """Name of the best run of those that share this; None while they are not all done, or if none has a score."""
    names = [name for name, run in folder.runs.items() if shared.items() <= run.items()]
    records = folder.records()
    if not names or not records.keys() >= set(names):
        return None
    return best_run(tabulate({name: records[name] for name in names}))
