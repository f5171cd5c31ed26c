"""The page of the study says what its runs say."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "results" / "deep_bert"


def test_the_tables_are_those_of_the_runs() -> None:
    command = [sys.executable, str(FOLDER / "report.py"), "--tables"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    tables = [[line for line in text.splitlines() if line.startswith("|")] for text in (printed, page)]
    assert tables[0] == tables[1]
    assert len(tables[0]) > 20
    assert set(printed.splitlines()[1:]) <= set(page.splitlines())  # the first line counts the runs
