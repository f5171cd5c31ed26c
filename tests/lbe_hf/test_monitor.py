import math

import pytest
import torch

from lbe_hf.monitor import EntropyMonitor, Measurement


def add(monitor: EntropyMonitor, loss: float, lbe_loss: float, entropies: list[float], measured: bool = True) -> None:
    measurement = Measurement(
        penalty=torch.tensor(0.0),
        entropies=torch.tensor(entropies),
        measured=torch.tensor(measured),
        skipped=torch.tensor(loss < 0),
    )
    monitor.add(torch.tensor(loss), torch.tensor(lbe_loss), measurement)


def end_step(monitor: EntropyMonitor) -> None:
    assert monitor.step is not None
    monitor.end_step(monitor.step)


def test_means_over_steps_and_micro_batches() -> None:
    monitor = EntropyMonitor()
    add(monitor, 1.1, 0.1, [0.2, 0.6])  # two micro-batches of one step, task losses 1 and 2
    add(monitor, 2.4, 0.4, [0.4, 0.8])
    end_step(monitor)
    add(monitor, 3.0, 0.0, [0.6, 1.0])
    end_step(monitor)
    means = monitor.since_last()
    assert means is not None
    assert (means.task_loss, means.lbe_loss) == pytest.approx((3.0, 0.25))  # (1 + 2 + 3) / 2 steps
    assert (means.unmeasured, means.skipped) == (0.0, 0.0)
    assert means.entropies == pytest.approx([0.4, 0.8])
    assert monitor.last == means


def test_unmeasured_batches_count_for_the_loss_alone() -> None:
    monitor = EntropyMonitor()
    add(monitor, 1.1, 0.1, [0.2, 0.6])
    end_step(monitor)
    add(monitor, -3.0, 0.0, [0.0, 0.0], measured=False)
    end_step(monitor)
    means = monitor.since_last()
    assert means is not None
    assert means.task_loss == pytest.approx(-1.0)
    assert (means.unmeasured, means.skipped) == (0.5, 0.5)
    assert means.entropies == pytest.approx([0.2, 0.6])


def test_empty_and_started_anew() -> None:
    monitor = EntropyMonitor()
    assert monitor.since_last() is None
    assert monitor.over_run() is None
    add(monitor, 1.0, 0.0, [0.0], measured=False)
    end_step(monitor)
    means = monitor.since_last()
    assert means is not None
    assert means.entropies == []
    assert monitor.since_last() is None
    assert monitor.last == means


def test_means_over_the_run_include_what_was_logged() -> None:
    monitor = EntropyMonitor()
    for loss in (1.0, 2.0, 6.0):
        add(monitor, loss, 0.5, [loss])
        end_step(monitor)
        monitor.since_last()
    means = monitor.over_run()
    assert means is not None
    assert (means.task_loss, means.lbe_loss, *means.entropies) == pytest.approx((2.5, 0.5, 3.0))


def test_averages_over_processes() -> None:
    monitor = EntropyMonitor()
    add(monitor, 1.1, 0.1, [0.2])
    other = torch.tensor([3.0, 0.0, 0.0, 0.0, 1.0, 0.0])  # a process whose batch could not be measured
    assert monitor.step is not None
    monitor.end_step((monitor.step + other) / 2)
    means = monitor.since_last()
    assert means is not None
    assert means.task_loss == pytest.approx(2.0)
    assert means.lbe_loss == pytest.approx(0.05)
    assert means.entropies == pytest.approx([0.2])


def test_a_loss_that_is_not_finite_is_replaced_as_trainer_does() -> None:
    """Trainer adds its sum since the last log line, divided by 1 plus the steps since then."""
    monitor = EntropyMonitor(filters=True)
    add(monitor, math.nan, math.nan, [0.2])
    add(monitor, 1.1, 0.1, [0.2])
    end_step(monitor)
    add(monitor, 3.4, 0.4, [0.2])
    add(monitor, math.inf, 0.0, [0.4])
    end_step(monitor)
    means = monitor.since_last()
    assert means is not None
    task, penalty = 1.0 + 3.0, 0.1 + 0.4
    assert means.task_loss == pytest.approx((task + task / 2) / 2)
    assert means.lbe_loss == pytest.approx((penalty + penalty / 2) / 2)
    assert means.entropies == pytest.approx([0.25])
