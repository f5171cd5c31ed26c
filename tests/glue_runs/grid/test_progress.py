from types import SimpleNamespace
from typing import Any

import pytest
from tiny import bert, token_rows
from transformers import PrinterCallback, ProgressCallback, Trainer

from glue_runs.grid.progress import RunBar, show_run


@pytest.mark.parametrize("among_others", [False, True])
def test_the_bar_replaces_what_the_trainer_prints(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch, among_others: bool
) -> None:
    monkeypatch.setattr("multiprocessing.parent_process", lambda: SimpleNamespace() if among_others else None)
    trainer = make_trainer(Trainer, bert(), token_rows(4))
    show_run(trainer, "a run")
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert not {ProgressCallback, PrinterCallback} & set(kinds)
    assert kinds.count(RunBar) == (0 if among_others else 1)


def test_the_bar_of_a_resumed_run_starts_at_its_step() -> None:
    bar = RunBar("a run")
    bar.on_train_begin(None, SimpleNamespace(max_steps=10, global_step=4), None)
    assert bar.bar.n == 4
    bar.on_train_end(None, None, None)
