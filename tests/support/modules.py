"""Modules run as `python -m` runs them, in this process."""

import runpy
import sys

import pytest


def help_of(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `python -m module --help` prints on either stream; it must exit with code 0."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert stop.value.code == 0
    printed = capsys.readouterr()
    return printed.out + printed.err
