"""The benchmarks are run by hand; here is only seen that what they import is still where they look for it."""

import runpy
from pathlib import Path

import pytest
from programs import ROOT

BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_benchmark_loads(script: Path) -> None:
    assert "main" in runpy.run_path(str(script))
