import pytest
import torch

from lbe_hf.monitor import EntropyMonitor, by_layer


def add(monitor: EntropyMonitor, loss: float, penalty: float, entropies: list[float], measured: bool = True) -> None:
    monitor.add(torch.tensor(loss), torch.tensor(penalty), torch.tensor(entropies), torch.tensor(measured))


def test_means_over_steps_and_micro_batches() -> None:
    monitor = EntropyMonitor()
    add(monitor, 1.1, 0.1, [0.2, 0.6])  # two micro-batches of one step, task losses 1 and 2
    add(monitor, 2.4, 0.2, [0.4, 0.8])
    monitor.end_step()
    add(monitor, 3.0, 0.0, [0.6, 1.0])
    monitor.end_step()
    logs = monitor.means(lambda sums: sums)
    assert logs == pytest.approx(
        {
            "task_loss": 3.0,  # (1 + 2 + 3) / 2 steps
            "lbe_loss": 0.25,
            "unmeasured": 0.0,
            "entropy_mean": 0.6,
            "entropy_min": 0.4,
            "entropy_last": 0.8,
        }
    )
    assert monitor.entropies == pytest.approx([0.4, 0.8])


def test_unmeasured_batches_count_for_the_loss_alone() -> None:
    monitor = EntropyMonitor()
    add(monitor, 1.1, 0.1, [0.2, 0.6])
    monitor.end_step()
    add(monitor, 3.0, 0.0, [0.0, 0.0], measured=False)
    monitor.end_step()
    logs = monitor.means(lambda sums: sums)
    assert logs["task_loss"] == pytest.approx(2.0)
    assert logs["unmeasured"] == pytest.approx(0.5)
    assert monitor.entropies == pytest.approx([0.2, 0.6])


def test_empty_and_started_anew() -> None:
    monitor = EntropyMonitor()
    assert monitor.means(lambda sums: sums) == {}
    add(monitor, 1.0, 0.0, [0.0], measured=False)
    monitor.end_step()
    logs = monitor.means(lambda sums: sums)
    assert "entropy_mean" not in logs
    assert monitor.entropies == []
    assert monitor.means(lambda sums: sums) == {}


def test_averages_over_processes() -> None:
    monitor = EntropyMonitor()
    add(monitor, 1.1, 0.1, [0.2])
    monitor.end_step()
    other = torch.tensor([3.0, 0.0, 0.0, 1.0, 0.0])  # a process whose batch could not be measured
    logs = monitor.means(lambda sums: (sums + other) / 2)
    assert logs["task_loss"] == pytest.approx(2.0)
    assert logs["lbe_loss"] == pytest.approx(0.05)
    assert monitor.entropies == pytest.approx([0.2])


def test_layers_of_a_log_line_are_in_their_order_whatever_that_of_the_line() -> None:
    line = {f"entropy/layer_{layer:02d}": float(layer) for layer in range(112)}
    sorted_by_name = dict(sorted({**line, "entropy_mean": 9.0, "target/layer_00": 0.5}.items()))
    assert list(sorted_by_name) != [*line, "entropy_mean", "target/layer_00"]
    assert by_layer(sorted_by_name, "entropy") == list(range(112))
    assert by_layer(sorted_by_name, "target") == [0.5]
    assert by_layer({"loss": 1.0}, "entropy") == []
