"""Every module of the packages has a test file in the same place."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [path.relative_to(ROOT) for package in ("lbe_hf", "glue_runs") for path in (ROOT / package).rglob("*.py")]


@pytest.mark.parametrize("module", [path for path in MODULES if path.name != "__init__.py"], ids=str)
def test_module_has_a_test_file(module: Path) -> None:
    assert (ROOT / "tests" / module.parent / f"test_{module.stem.strip('_')}.py").is_file()
