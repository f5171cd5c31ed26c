"""The programs of `examples/`, `results/` and `benchmarks/` as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

ROOT = Path(__file__).parents[2]


def example(name: str) -> ModuleType:
    """`examples/{name}.py`, as `program` loads it."""
    return program(f"examples/{name}.py")


def program(path: str) -> ModuleType:
    """The program at this path, run once as a module; its dataclasses look themselves up in `sys.modules`.

    As for a script, its own folder comes first where it imports from.
    """
    key = path.removesuffix(".py").replace("/", "_")
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = module = importlib.util.module_from_spec(spec)
        with patch.object(sys, "path", [str((ROOT / path).parent), *sys.path]):
            spec.loader.exec_module(module)
    return sys.modules[key]
