"""The statistics by loops in float64."""

import math

import pytest
import torch
from tiny import reference_entropy
from torch import Tensor

from lbe_hf.layer_statistics import MAX_GRAM_SAMPLES, LayerStatistics, dead_and_nonfinite, layer_statistics


def units_of(x: Tensor, mask: Tensor, samples: str) -> list[Tensor]:
    """The values of each unit over its samples, positions (of two or more real tokens) times features."""
    x = x.double().reshape(*x.shape[:2], -1)
    if samples == "token":
        return list(x[mask.bool()].T)
    positions = [x[mask[:, position].bool(), position] for position in range(x.shape[1])]
    return [unit for values in positions if len(values) >= 2 for unit in values.T]


def reference_share(x: Tensor, mask: Tensor, samples: str) -> float:
    variance = second = 0.0
    for unit in units_of(x, mask, samples):
        own = ((unit - unit.mean()) ** 2).sum() / (len(unit) - 1)
        variance += float(own) * len(unit)
        second += float(own + unit.mean() ** 2) * len(unit)
    return variance / second


def reference_rank(x: Tensor, mask: Tensor, samples: str) -> float:
    x = x.double().reshape(*x.shape[:2], -1)
    if samples == "token":
        tokens = x[mask.bool()]
        centred = tokens - tokens.mean(0)
    else:
        rows = torch.zeros_like(x)
        for position in range(x.shape[1]):
            real = mask[:, position].bool()
            rows[real, position] = x[real, position] - x[real, position].mean(0)
        centred = rows.flatten(1)
    eigenvalues = torch.linalg.svdvals(centred) ** 2
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def some_mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize("samples", ["sequence", "token"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-6, 1e-6), (1e4, 0.0), (1e-2, 10.0)])
def test_statistics_of_hidden_states(samples: str, masked: bool, scale: float, shift: float) -> None:
    x = (torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0)) * scale + shift).float()
    mask = some_mask() if masked else torch.ones(5, 4)
    found = layer_statistics("layer", x, mask if masked else None, samples)  # type: ignore[arg-type]
    assert found.batch_entropy == pytest.approx(reference_entropy(x, mask, samples).item(), rel=1e-4)
    assert found.variance_share == pytest.approx(reference_share(x, mask, samples), rel=1e-4)
    assert found.effective_rank == pytest.approx(reference_rank(x, mask, samples), rel=1e-4)
    assert found.dead_units == found.nonfinite == 0
    assert found.max_rank == (min(6, int(mask.sum()) - 1) if samples == "token" else 4)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 4)])
def test_vectors_and_images(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    found = layer_statistics("layer", x)
    whole = torch.ones(5, 3)
    assert found.variance_share == pytest.approx(reference_share(x, whole, "sequence"), rel=1e-4)
    assert found.effective_rank == pytest.approx(reference_rank(x, whole, "sequence"), rel=1e-4)


def test_shares_do_not_depend_on_the_scale_and_entropy_does() -> None:
    x = torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(0)) + 1
    large, small = layer_statistics("", x), layer_statistics("", x * 1e-3)
    assert small.variance_share == pytest.approx(large.variance_share, rel=1e-5)
    assert small.effective_rank == pytest.approx(large.effective_rank, rel=1e-5)
    assert small.batch_entropy < 1e-4 < large.batch_entropy


@pytest.mark.parametrize("factor", [1e-15, 1e15])
def test_tiny_and_huge_activations_have_a_rank(factor: float) -> None:
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    assert layer_statistics("", x * factor).effective_rank == pytest.approx(
        layer_statistics("", x).effective_rank, rel=1e-3
    )


def test_one_direction_has_rank_one_and_no_direction_rank_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(8, 1, generator=generator) * torch.randn(1, 16, generator=generator) + 3
    assert layer_statistics("", line).effective_rank == pytest.approx(1, rel=1e-4)
    constant = layer_statistics("", torch.full((8, 16), 0.1))
    assert (constant.effective_rank, constant.variance_share, constant.dead_units) == (0, 0, 1)
    assert layer_statistics("", torch.zeros(8, 16)).variance_share == 0


def test_rounding_is_no_variance() -> None:
    x = torch.full((8, 16), 0.1)
    x[::2] = torch.nextafter(x[::2], torch.tensor(1.0))
    found = layer_statistics("", x)
    assert found.dead_units == 1
    assert found.effective_rank == 0


def test_dead_units_are_features_without_variance_at_any_position() -> None:
    x = torch.randn(6, 4, 10, generator=torch.Generator().manual_seed(0))
    x[:, :, :3] = torch.arange(4.0)[None, :, None]  # differs between positions only
    x[:, 0] = 0.0  # as the first token of every text
    assert layer_statistics("", x).dead_units == pytest.approx(0.3)
    assert dead_and_nonfinite(x) == pytest.approx((0.3, 0.0))
    channels = torch.randn(6, 10, 4, 4, generator=torch.Generator().manual_seed(0))
    channels[:, :2] = 1.0
    assert layer_statistics("", channels).dead_units == pytest.approx(0.2)
    vectors = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    vectors[:, 0] = 1.0
    assert layer_statistics("", vectors).dead_units == pytest.approx(0.1)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_but_at_padding(wrong: float) -> None:
    x = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    x[0, 0, :3] = wrong
    found = layer_statistics("", x, some_mask())
    assert found.nonfinite == pytest.approx(3 / (13 * 6))
    assert math.isnan(found.variance_share)
    x[0, 0, :3] = 0.0
    x[4, 1:] = wrong  # at padding
    assert layer_statistics("", x, some_mask()).nonfinite == 0
    assert layer_statistics("", x, some_mask()).effective_rank > 1


def test_too_few_samples_are_not_measured() -> None:
    found = layer_statistics("", torch.randn(1, 4, 6))
    assert math.isnan(found.batch_entropy)
    assert found.max_rank == 0
    assert not math.isnan(layer_statistics("", torch.randn(1, 4, 6), samples="token").batch_entropy)


@pytest.mark.parametrize("samples", ["sequence", "token"])
def test_the_rank_of_many_samples_is_that_of_some(samples: str) -> None:
    many = 4 * MAX_GRAM_SAMPLES
    x = torch.randn(many, 1, 32, generator=torch.Generator().manual_seed(0))
    x = x if samples == "sequence" else x.transpose(0, 1)
    found = layer_statistics("", x, samples=samples)  # type: ignore[arg-type]
    whole = torch.ones(x.shape[:2])
    assert found.effective_rank == pytest.approx(reference_rank(x, whole, samples), rel=0.05)
    assert found.max_rank == 32


def test_autocasting_and_half_precision_are_measured_in_float32() -> None:
    x = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer_statistics("", x)
    assert found.effective_rank == pytest.approx(reference_rank(x, torch.ones(8, 4), "sequence"), rel=1e-3)


def test_over_several_batches() -> None:
    first = LayerStatistics("layer", 1.0, 0.5, 4.0, 0.2, 0.0, 7)
    second = LayerStatistics("layer", 3.0, 0.3, 2.0, 0.4, 0.1, 7)
    assert LayerStatistics.over([first, second]) == LayerStatistics("layer", 2.0, 0.4, 3.0, 0.2, 0.1, 7)
    unmeasured = LayerStatistics.unmeasured("layer")
    assert LayerStatistics.over([first, unmeasured]).batch_entropy == 1.0
    assert math.isnan(LayerStatistics.over([unmeasured]).batch_entropy)
