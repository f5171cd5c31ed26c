"""The notebook runs from top to bottom offline, and the outputs that are kept in it are those of such a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from programs import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def printed(notebook: Path) -> str:
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return "".join("".join(output["text"]) for output in outputs if output.get("name") == "stdout")


def figures(notebook: Path) -> list[str]:
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def test_it_runs(tmp_path: Path) -> None:
    shutil.copy(NOTEBOOK, tmp_path)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output", "executed.ipynb"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, NOTEBOOK.name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    executed = tmp_path / "executed.ipynb"
    assert len(figures(executed)) == 1
    assert "accuracy" in printed(executed)
    assert "model.safetensors\n" in printed(executed)
    saved = {path.name for path in (tmp_path / "runs" / "quickstart").iterdir()}
    assert {"README.md", "config.json", "information_flow.json", "model.safetensors"} <= saved


def test_outputs_are_kept_and_small() -> None:
    assert NOTEBOOK.stat().st_size < 100_000
    assert all(cell["outputs"] for cell in code_cells(NOTEBOOK))
    assert [cell["execution_count"] for cell in code_cells(NOTEBOOK)] == [*range(1, len(code_cells(NOTEBOOK)) + 1)]
    names = [output.get("name") for cell in code_cells(NOTEBOOK) for output in cell["outputs"]]
    assert "stderr" not in names
    assert len(figures(NOTEBOOK)) == 1
    assert "Healthy" in printed(NOTEBOOK)
