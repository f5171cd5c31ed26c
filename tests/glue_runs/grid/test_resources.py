"""How many runs are done at once, of the cores and the memory that there are."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from glue_runs.grid import resources
from glue_runs.grid.arguments import parse_grid
from glue_runs.grid.plan import plan_runs
from glue_runs.grid.resources import share_of_machine

GIB = 2**30


@pytest.mark.parametrize(
    ("arguments", "cores", "gib", "expected"),
    [
        ("", 4, 64, (4, 1)),
        ("", 1, 64, (1, None)),
        ("", 4, 2.5, (2, 2)),  # a process takes 1 GiB, and the model of the test next to nothing
        ("", 4, 0.5, (1, None)),
        ("--cpus_per_run 2", 4, 64, (2, 2)),
        ("--cpus_per_run 8", 4, 64, (1, 8)),
        ("--workers 1", 4, 64, (1, None)),
        ("--workers 1 --cpus_per_run 3", 4, 64, (1, 3)),
        ("--workers 3", 8, 0.5, (3, 2)),
        ("--workers 8", 4, 64, (8, 1)),
        ("--seeds 1 --learning_rates 1e-3 --lbe_betas 0", 16, 64, (2, 8)),  # a run of each task
        ("--seeds 1 --learning_rates 1e-3 --lbe_betas 0 --tasks demo_rte", 16, 64, (1, None)),
    ],
)
def test_share(
    monkeypatch: pytest.MonkeyPatch,
    tiny_encoder: str,
    tmp_path: Path,
    arguments: str,
    cores: int,
    gib: float,
    expected: tuple[int, int | None],
) -> None:
    monkeypatch.setattr(resources.joblib, "cpu_count", lambda: cores)
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: SimpleNamespace(available=gib * GIB))
    monkeypatch.setattr(resources, "_CGROUP_LIMIT", tmp_path / "memory.max")
    given = f"--tasks demo_rte demo_cola --models {tiny_encoder} --precision fp32 {arguments}"
    grid, fixed = parse_grid(given.split())
    assert share_of_machine(grid, plan_runs(grid, fixed)) == expected


@pytest.mark.parametrize(("limit", "expected"), [("max\n", 4), (f"{5 * GIB // 2}\n", 2), (f"{GIB // 2}\n", 1)])
def test_memory_that_a_container_may_use(
    monkeypatch: pytest.MonkeyPatch, tiny_encoder: str, tmp_path: Path, limit: str, expected: int
) -> None:
    monkeypatch.setattr(resources.joblib, "cpu_count", lambda: 4)
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    monkeypatch.setattr(resources, "_CGROUP_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text(limit)
    grid, fixed = parse_grid(f"--tasks demo_rte --models {tiny_encoder} --precision fp32".split())
    assert share_of_machine(grid, plan_runs(grid, fixed))[0] == expected


@pytest.mark.parametrize(("on_cpu", "expected"), [("", 1), ("--use_cpu", 4)])
def test_one_at_once_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tiny_encoder: str, on_cpu: str, expected: int) -> None:
    monkeypatch.setattr(resources.joblib, "cpu_count", lambda: 4)
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    monkeypatch.setattr(resources.torch.accelerator, "is_available", lambda: True)
    grid, fixed = parse_grid(f"--tasks demo_rte --models {tiny_encoder} --precision fp32 {on_cpu}".split())
    assert share_of_machine(grid, plan_runs(grid, fixed))[0] == expected
