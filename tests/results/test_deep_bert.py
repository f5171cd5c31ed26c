"""The page of the study says what its runs say."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "results" / "deep_bert"


def test_the_tables_are_those_of_the_runs() -> None:
    command = [sys.executable, str(FOLDER / "report.py"), "--tables"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) > 20
    assert not set(lines) - set((FOLDER / "README.md").read_text(encoding="utf-8").splitlines())
