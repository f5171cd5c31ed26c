from typing import Any

import on_ranks
import pytest
import torch
from ranks import Ranks
from tiny import reference_entropy
from torch import Tensor
from torch.nn.functional import pad

from lbe_hf.distributed import measure_entropies_over_processes

WEIGHTS = [0.5, 1.7]  # of the ranks' losses: the gradient belongs to their sum


def part(rows: int, positions: int, shortest: int = 1) -> tuple[Tensor, Tensor]:
    """Activations `(rows, positions, 6)` with deviations of very different size, and their mask."""
    mask = (torch.arange(positions) < torch.randint(shortest, positions + 1, (rows, 1))).long()
    return torch.randn(rows, positions, 6) * torch.rand(positions, 6), mask


def whole(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The batch of one process: the rows of all, padded to the longest."""
    longest = max(mask.shape[1] for _, mask in parts)
    rows = [pad(x.double(), (0, 0, 0, longest - x.shape[1])) for x, _ in parts]
    masks = [pad(mask, (0, longest - mask.shape[1])) for _, mask in parts]
    return torch.cat(rows).requires_grad_(), torch.cat(masks)


def compare(ranks: Ranks, parts: list[tuple[Tensor, Tensor]], samples: Any, masked: bool = True) -> None:
    """Two layers, one eight times as wide; value and gradient within 1e-6 of a loop over units in float64."""
    layers = [[x, x * 8] for x, _ in parts]
    masks: list[list[Tensor | None]] = [[mask, mask] if masked else [None, None] for _, mask in parts]
    answers = ranks(on_ranks.measure, layers, masks, WEIGHTS, samples)
    x, mask = whole(parts)
    entropies = [reference_entropy(x * width, mask if masked else None, samples) for width in (1, 8)]
    gradients = [
        torch.autograd.grad(sum(WEIGHTS) * (layer + 1) * entropy, x)[0] / width
        for layer, (entropy, width) in enumerate(zip(entropies, (1, 8), strict=True))
    ]
    start = 0
    for (own, _), (measured_entropies, measured, own_gradients, _) in zip(parts, answers, strict=True):
        assert measured.all()
        torch.testing.assert_close(measured_entropies.double(), torch.stack(entropies), rtol=1e-6, atol=0)
        for expected, gradient in zip(gradients, own_gradients, strict=True):
            expected = expected[start : start + len(own), : own.shape[1]]
            assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()
        start += len(own)


@pytest.mark.parametrize("samples", ["sequence", "token"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("shapes", [[(16, 12), (16, 12)], [(9, 20), (3, 7)], [(1, 4), (8, 9)]])
def test_equals_one_process_with_the_whole_batch(
    ranks: Ranks, shapes: list[tuple[int, int]], offset: float, samples: Any
) -> None:
    torch.manual_seed(0)
    parts = [part(*shape) for shape in shapes]
    shift = offset * torch.randn(20, 6)
    compare(ranks, [(x + shift[: x.shape[1]], mask) for x, mask in parts], samples)


@pytest.mark.parametrize("samples", ["sequence", "token"])
def test_without_a_mask(ranks: Ranks, samples: Any) -> None:
    torch.manual_seed(0)
    compare(ranks, [part(5, 4), part(2, 4)], samples, masked=False)


def test_layers_whose_lengths_are_equal_on_one_process_only(ranks: Ranks) -> None:
    """As the encoder and the decoder of a batch without masks."""
    torch.manual_seed(0)
    lengths = [(5, 5), (7, 6)]
    layers = [[torch.randn(3, length, 6) for length in own] for own in lengths]
    answers = ranks(on_ranks.measure, layers, [[None, None]] * 2, WEIGHTS, "sequence")
    for layer in range(2):
        x, mask = whole([(own[layer], torch.ones(3, own[layer].shape[1])) for own in layers])
        expected = reference_entropy(x, mask)
        (gradient,) = torch.autograd.grad(sum(WEIGHTS) * (layer + 1) * expected, x)
        for rank, (entropies, _, gradients, _) in enumerate(answers):
            assert entropies[layer].item() == pytest.approx(expected.item(), rel=1e-6)
            part_of_rank = gradient[3 * rank : 3 * rank + 3, : lengths[rank][layer]].float()
            torch.testing.assert_close(gradients[layer], part_of_rank, rtol=1e-5, atol=1e-7)


def test_one_row_on_each_process(ranks: Ranks) -> None:
    torch.manual_seed(0)
    compare(ranks, [part(1, 5, shortest=3), part(1, 3, shortest=3)], "sequence")


def test_position_that_is_padding_on_one_process(ranks: Ranks) -> None:
    torch.manual_seed(0)
    (left, mask), right = part(4, 5), part(4, 5, shortest=5)
    mask[:, 2:] = 0
    left[:, 2:] = float("nan")
    answers = ranks(on_ranks.measure, [[left], [right[0]]], [[mask], [right[1]]], WEIGHTS, "sequence")
    expected = reference_entropy(*whole([(left.nan_to_num(), mask), right]))
    for entropies, _, gradients, _ in answers:
        assert entropies.item() == pytest.approx(expected.item(), rel=1e-6)
        assert gradients[0].isfinite().all()
    assert answers[0][2][0][:, 2:].count_nonzero() == 0


def test_nothing_to_measure(ranks: Ranks) -> None:
    left, right = (torch.tensor([[1, 1, 0]]), torch.tensor([[0, 0, 1]]))
    layers = [[torch.randn(1, 3, 6)] for _ in range(2)]
    for entropies, measured, gradients, _ in ranks(on_ranks.measure, layers, [[left], [right]], WEIGHTS, "sequence"):
        assert not measured.any()
        assert entropies.item() == 0
        assert gradients[0].count_nonzero() == 0


def test_constant_features_have_exactly_no_entropy(ranks: Ranks) -> None:
    layers = [[torch.full((rows, 4, 6), 1000.1)] for rows in (3, 4)]
    for samples in ("sequence", "token"):
        for entropies, *_ in ranks(on_ranks.measure, layers, [[None], [None]], WEIGHTS, samples):
            assert entropies.item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(ranks: Ranks, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [(x.to(dtype), mask) for x, mask in (part(6, 5), part(3, 4))]
    answers = ranks(on_ranks.measure, [[x] for x, _ in parts], [[mask] for _, mask in parts], WEIGHTS, "sequence")
    expected = reference_entropy(*whole(parts))
    for entropies, _, gradients, _ in answers:
        assert entropies.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert entropies.item() == pytest.approx(expected.item(), rel=1e-6)
        assert gradients[0].dtype == dtype


@pytest.mark.parametrize(("samples", "units", "agreement"), [("sequence", 7, 3 * 8), ("token", 1, 0)])
def test_bytes_that_a_step_sends(ranks: Ranks, samples: Any, units: int, agreement: int) -> None:
    """12 for each unit, 8 for each position, 4 for the gradient of each entropy, 24 to agree on the lengths."""
    parts = [part(4, 7, shortest=7), part(4, 7, shortest=7)]
    layers, masks = [[x, x, x] for x, _ in parts], [[mask] * 3 for _, mask in parts]
    for *_, sent in ranks(on_ranks.measure, layers, masks, WEIGHTS, samples):
        assert sent == 3 * (units * (12 * 6 + 8) + 4 + agreement)


def test_features_that_differ_are_refused_by_all(ranks: Ranks) -> None:
    layers = [[torch.randn(4, 3, features)] for features in (5, 6)]
    with pytest.raises(AssertionError) as failure:
        ranks(on_ranks.measure, layers, [[None], [None]], WEIGHTS, "sequence")
    for rank in (0, 1):
        assert f"rank {rank}" in str(failure.value)
    assert str(failure.value).count("[5] to [6]: use inputs of one size") == 2


def test_one_process_has_nothing_to_exchange() -> None:
    x, mask = part(4, 5)
    entropies, measured = measure_entropies_over_processes([x], [mask])
    assert measured.all()
    assert entropies.item() == pytest.approx(reference_entropy(x, mask).item(), rel=1e-6)
