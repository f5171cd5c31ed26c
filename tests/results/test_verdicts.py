"""The pages on the verdict have the tables of its study."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["results/verdicts/README.md", "docs/collapsed_layers.md"])
def test_the_tables_are_those_of_the_study(page: str) -> None:
    command = [sys.executable, str(ROOT / "results" / "verdicts" / "report.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("\n") > 12
    assert printed.strip() in (ROOT / page).read_text(encoding="utf-8")


def test_the_first_run_found_less() -> None:
    folder = ROOT / "results" / "verdicts"
    lines = pd.read_csv(folder / "first_run.csv")
    redundant = lines["fault"] == "one direction"
    faults, directions = lines.loc[~redundant, "hit"], lines.loc[redundant, "hit"]
    page = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    assert f"found {faults.sum()} of {len(faults)} faults, and {directions.sum()} of {len(directions)} models" in page
    assert set(lines.loc[~redundant & ~lines["hit"], "model"]) == {"BERT"}
