import pytest
from modules import help_of


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--hub_model_id" in help_of("glue_runs.push", monkeypatch, capsys)
