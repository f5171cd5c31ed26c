import pytest
import torch

from lbe_hf.moments import Plan, as_units, deviations, moments_of, real_tokens


@pytest.mark.parametrize("pool", [False, True])
def test_moments_and_deviations_of_masked_activations(pool: bool) -> None:
    torch.manual_seed(0)
    x = (torch.randn(5, 3, 2) + 1000).double()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 1]])
    samples = "token" if pool else "sequence"
    plan = Plan.of(x, mask, samples)
    moments = moments_of(x, plan)
    real = [x[mask.bool()]] if pool else [x[mask[:, position].bool(), position] for position in range(3)]
    assert moments.count.flatten().tolist() == [len(values) for values in real]
    mean = torch.stack([values.mean(0) for values in real])
    squares = torch.stack([(values - values.mean(0)).square().sum(0) for values in real])
    torch.testing.assert_close(moments.mean + moments.mean_rest, mean)
    torch.testing.assert_close(moments.squares, squares, rtol=1e-9, atol=1e-9)
    centred = deviations(x, plan, moments.mean, moments.mean_rest, x.dtype)
    torch.testing.assert_close(centred, (x - mean) * mask.unsqueeze(-1), rtol=1e-9, atol=1e-9)


def test_masks_of_four_kinds_mean_the_same() -> None:
    expected = torch.tensor([[True, True, False], [True, False, False]])
    additive = torch.where(expected, 0.0, float("-inf"))
    for mask in (expected, expected.long(), additive, additive[:, None, None, :].expand(2, 2, 3, 3)):
        assert real_tokens(mask).tolist() == expected.tolist()
    with pytest.raises(ValueError, match=r"must be \(B, T\)"):
        real_tokens(torch.ones(3))


def test_as_units() -> None:
    assert as_units(torch.zeros(4, 3, 2, 5), "sequence").shape == (4, 3, 10)
    assert as_units(torch.zeros(4, 6), "sequence").shape == (4, 6, 1)
    assert as_units(torch.zeros(4, 6), "token").shape == (4, 1, 6)
    with pytest.raises(ValueError, match="floating point"):
        as_units(torch.zeros(4, 6, dtype=torch.long), "token")
