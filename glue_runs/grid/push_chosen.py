"""Push the chosen run of each task of a grid."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ..analysis.comparison import BASELINE, choose_settings
from ..analysis.store import GridFolder
from ..analysis.table import read_results
from ..errors import InputError
from ..finetune.push import PushArguments, PushError, push
from ..finetune.record import SETUP
from ..redaction import redact
from .plan import GridArguments, Run


def push_chosen(folder: GridFolder, grid: GridArguments, runs: Iterable[Run]) -> bool:
    """Push the chosen run of each task whose runs are all done, and say how it went; False if a push failed.

    Where all went well, the models that are not kept for another reason are removed, but for the pushed ones.
    """
    # With one model, the runs of a task have one setup.
    setups = {run.task: {key: getattr(run, key) for key in SETUP} for run in runs}
    chosen = {task: choose_run(folder, setup) for task, setup in setups.items()}
    failed = False
    for task, name in chosen.items():
        if name is None:
            print(f"{task}: not pushed, its runs are not all done; the same command goes on from here.")
            continue
        options = PushArguments(hub_model_id=grid.repository(task), hub_token=grid.hub_token)
        try:
            print(f"{task}: pushed {name} to {push(folder.folder(name), options)}")
        except InputError:  # it was done before there was a wish to push
            remedy = f"delete {folder.folder(name)} and start the grid again"
            print(f"error: {task}: {name} has not kept its model: {remedy}.", file=sys.stderr)
            failed = True
        except PushError as error:
            print(f"error: {task}: {redact(str(error), grid.hub_token)}", file=sys.stderr)
            failed = True
    if not failed and all(chosen.values()):
        folder.tidy(grid.keep_models, also=[name for name in chosen.values() if name is not None])
    return not failed


def choose_run(folder: GridFolder, setup: dict[str, str]) -> str | None:
    """Name of the run that stands for a setup: of the setting that the report chooses the best seed on validation.

    Of several methods with LBE it is that with the best mean. None while runs of the setup are not done.
    """
    names = [name for name, run in folder.runs.items() if setup.items() <= run.items()]
    if not names or any(folder.state(name) != "done" for name in names):
        return None
    results = read_results(folder)
    chosen = choose_settings(results[results["name"].isin(names)])
    regularized = chosen[chosen["method"] != BASELINE]
    chosen = chosen if regularized.empty else regularized
    means = chosen.groupby("method", sort=False)["validation"].mean()
    seeds = chosen[chosen["method"] == means.idxmax()]
    # Of equals the last one, as GridFolder.tidy has it, which keeps the model.
    return str(seeds.sort_values("validation", kind="stable", na_position="first")["name"].iloc[-1])
