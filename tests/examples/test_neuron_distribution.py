"""The table describes the distributions as their formulas do."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from programs import example
from tiny import reference_entropy


@pytest.fixture(scope="module")
def neuron_distribution() -> ModuleType:
    return example("neuron_distribution")


def test_main_draws_and_describes_every_layer(neuron_distribution: ModuleType, tmp_path: Path) -> None:
    arguments = "--depth 3 --width 16 --num_train_epochs 2 --use_cpu".split()
    results = neuron_distribution.main([*arguments, "--output_dir", str(tmp_path)])
    assert results["layer"].tolist() == [1, 2, 3]
    assert results["zeros"].between(0.1, 0.9).all()
    assert (results["entropy"] > 0).all()
    assert (tmp_path / "neuron_distribution.png").is_file()


def test_descriptions(neuron_distribution: ModuleType) -> None:
    """A Gaussian before the ReLU has no skewness and no excess kurtosis; after it, the moments are known."""
    before = np.random.default_rng(0).normal(size=(50_000, 7)).astype(np.float32)
    before[:, 0] = -1  # a dead unit
    after = before.clip(min=0)
    described = neuron_distribution.describe(before, after)
    assert described["skewness_before"] == pytest.approx(0, abs=0.03)
    assert described["kurtosis_before"] == pytest.approx(0, abs=0.06)
    # The moments of max(0, x): 1/sqrt(2 pi), 1/2, sqrt(2/pi) and 3/2.
    m1, m2, m3, m4 = 1 / np.sqrt(2 * np.pi), 1 / 2, np.sqrt(2 / np.pi), 3 / 2
    variance = m2 - m1**2
    skewness = (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5
    kurtosis = (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4) / variance**2 - 3
    assert described["skewness_after"] == pytest.approx(skewness, rel=0.03)
    assert described["kurtosis_after"] == pytest.approx(kurtosis, rel=0.1)
    assert described["zeros"] == pytest.approx((1 + 6 / 2) / 7, rel=0.01)
    expected = reference_entropy(torch.tensor(after)[:, None])
    assert described["entropy"] == pytest.approx(expected.item(), rel=1e-5)


def test_one_narrow_layer_is_drawn(neuron_distribution: ModuleType, tmp_path: Path) -> None:
    neuron_distribution.draw([np.random.default_rng(0).normal(size=(20, 3))], str(tmp_path))
    assert (tmp_path / "neuron_distribution.png").stat().st_size > 1000


def test_paper(neuron_distribution: ModuleType) -> None:
    """DESIGN.md has the table of what the authors' script sets."""
    args = neuron_distribution.parse(neuron_distribution.Arguments, neuron_distribution.defaults, ["--paper"])
    assert (args.data, args.depth, args.width) == ("mnist", 6, 500)
    assert (args.per_device_train_batch_size, args.num_train_epochs, args.learning_rate) == (1024, 5, 1e-5)
