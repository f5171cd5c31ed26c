import pytest
from modules import help_of


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--task_name" in help_of("glue_runs.finetune", monkeypatch, capsys)
