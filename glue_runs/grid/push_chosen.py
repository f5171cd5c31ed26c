"""Pushes the chosen run of each task of a grid."""

from __future__ import annotations

from collections.abc import Iterable

from ..analysis.selection import best_run
from ..analysis.shapes import COMPARE_BY
from ..analysis.store import GridFolder
from ..analysis.table import tabulate
from ..errors import InputError
from ..finetune.arguments import given_settings
from ..finetune.push import NoModelError, PushArguments, PushError, push
from ..redaction import report_error
from .arguments import GridArguments
from .plan import Run


def push_chosen(folder: GridFolder, grid: GridArguments, runs: Iterable[Run]) -> bool:
    """Push the chosen run of each task whose runs are all done, and print the results; False if a push failed.

    If all pushes succeed, models that `keep_models` does not keep are removed, except the pushed ones.
    """
    runs = list(runs)
    fixed = given_settings(list(runs[0].fixed))
    hub = {name: fixed.get(name) for name in ("hub_private_repo", "hub_revision")}
    # With one model, the runs of a task can all be compared.
    compared = {run.task: {key: getattr(run, key) for key in COMPARE_BY} for run in runs}
    chosen = {task: choose_run(folder, shared) for task, shared in compared.items()}
    failed = False
    for task, name in chosen.items():
        if name is None:
            print(f"{task}: not pushed, because its runs are not all done, have no scores, or diverged.")
            continue
        options = PushArguments(hub_model_id=grid.repository(task), hub_token=grid.hub_token, **hub)
        try:
            print(f"{task}: pushed {name} to {_push(folder, name, options)}")
        except (InputError, PushError) as error:
            report_error(f"{task}: {error}", 1, grid.hub_token)
            failed = True
    if not failed and all(chosen.values()):
        pushed = [name for name in chosen.values() if name is not None]
        folder.prune(grid.keep_models, [run.name for run in runs], also=pushed)
    return not failed


def _push(folder: GridFolder, name: str, options: PushArguments) -> str:
    """As `push`, with the remedies of a grid."""
    run_dir = folder.run_dir(name)
    if folder.is_linked(name):
        raise InputError(f"{run_dir} is a link: links are not pushed, replace it by the folder.")
    try:
        return push(run_dir, options)
    except NoModelError:  # it was finished by a command without --push_to_hub
        raise InputError(f"{name} has not kept its model: delete {run_dir} and start the grid again.") from None


def choose_run(folder: GridFolder, shared: dict[str, str]) -> str | None:
    """Name of the best run among those that share these fields; None until they are all done, or as for `best_run`."""
    names = [name for name, run in folder.runs.items() if shared.items() <= run.items()]
    records = folder.records()
    if not names or not records.keys() >= set(names):
        return None
    return best_run(tabulate({name: records[name] for name in names}))
