import gc
import math
import weakref
from typing import Any

import pytest
import torch
from tiny import reference_entropy
from torch import Tensor

from lbe_hf import batch_entropies, batch_entropy
from lbe_hf.entropy import measure_entropies
from lbe_hf.moments import real_tokens

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(32, 20, 48), (300, 5, 8), (2, 9, 33), (16, 3, 4, 5), (8, 17)]


def prefix_mask(rows: int, positions: int) -> Tensor:
    lengths = torch.randint(1, positions + 1, (rows, 1))
    return (torch.arange(positions) < lengths).long()


def holes_mask(rows: int, positions: int) -> Tensor:
    return (torch.rand(rows, positions) < 0.6).long()


def compare(x: Tensor, mask: Tensor | None, samples: str) -> None:
    """Value and gradient within 1e-6 of float64; a low-precision gradient within its own rounding."""
    scale = 2.0**16  # as a gradient scaler does, so that float16 can hold the gradient of one unit among many
    x = x.detach().requires_grad_()
    exact = x.detach().double().requires_grad_()
    entropy = batch_entropy(x, mask, samples)  # type: ignore[arg-type]
    expected = reference_entropy(exact, mask, samples)
    (entropy * scale).backward()
    (expected * scale).backward()
    assert entropy.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    assert entropy.item() == pytest.approx(expected.item(), rel=1e-6)
    assert x.grad is not None
    assert exact.grad is not None
    largest = exact.grad.abs().max()
    error = (x.grad.double() - exact.grad).abs()
    if x.dtype in (torch.bfloat16, torch.float16):
        info = torch.finfo(x.dtype)
        error -= info.eps / 2 * torch.maximum(exact.grad.abs(), torch.tensor(info.smallest_normal))
    assert error.max() <= 1e-6 * largest


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_definition(dtype: torch.dtype, shape: tuple[int, ...], offset: float) -> None:
    torch.manual_seed(0)
    deviation = torch.rand(shape[1:], dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64) * deviation + offset * torch.randn(shape[1:], dtype=torch.float64)
    if len(shape) == 2:
        compare(x.to(dtype), None, "sequence")
        return
    for mask in (None, prefix_mask(*shape[:2]), holes_mask(*shape[:2])):
        for samples in ("sequence", "token"):
            compare(x.to(dtype), mask, samples)


def test_known_values() -> None:
    # Two units with values 0 and 2, and 1 and 1: unbiased variances 2 and 0.
    x = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert batch_entropy(x).item() == pytest.approx(math.log(1 + 2 * math.pi * math.e) / 4, rel=1e-6)
    standard = torch.tensor([[-1.0], [1.0]]) / math.sqrt(2)  # variance 1
    assert batch_entropy(standard).item() == pytest.approx(1.128, abs=1e-3)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
    for samples in ("sequence", "token"):
        for used in (None, mask):
            assert torch.autograd.gradcheck(
                lambda x, s=samples, m=used: batch_entropy(x, m, s), (x,), atol=1e-8, rtol=1e-6
            )


def test_float64_is_exact() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5, 3, dtype=torch.float64).requires_grad_()
    y = x.detach().clone().requires_grad_()
    for samples in ("sequence", "token"):
        for mask in (None, prefix_mask(7, 5), holes_mask(7, 5)):
            ours = batch_entropy(x, mask, samples)  # type: ignore[arg-type]
            expected = reference_entropy(y, mask, samples)
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
            gradients = torch.autograd.grad(ours, x), torch.autograd.grad(expected, y)
            torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("held_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", ["sequence", "token"])
def test_deviations_held_in_a_narrower_type_round_the_gradient_to_it(held_dtype: torch.dtype, samples: Any) -> None:
    torch.manual_seed(0)
    x = (torch.randn(16, 10, 12) + 1000 * torch.randn(10, 12)).requires_grad_()
    mask = prefix_mask(16, 10)
    results = [measure_entropies([x], [mask], samples, held_dtype=dtype)[0] for dtype in (None, held_dtype)]
    assert torch.equal(*results)
    exact, ours = (torch.autograd.grad(entropy.sum(), x)[0] for entropy in results)
    assert ((ours - exact).abs() <= torch.finfo(held_dtype).eps * exact.abs() + 1e-12).all()
    assert not torch.equal(exact, ours)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        measure_entropies([x], [mask], samples, held_dtype=held_dtype)
    assert x.data_ptr() not in [tensor.data_ptr() for tensor in saved]
    assert [tensor.dtype for tensor in saved if tensor.shape == x.shape] == [held_dtype]


def test_masks_of_every_kind_select_the_same_tokens() -> None:
    torch.manual_seed(0)
    mask, x = prefix_mask(6, 5), torch.randn(6, 5, 3)
    lowest = torch.finfo(torch.float32).min
    additive = torch.zeros(6, 5).masked_fill(mask == 0, -torch.inf)
    queries = mask[:, None, :] * mask[:, :, None]
    causal = queries * torch.ones(5, 5, dtype=torch.long).tril()
    masks = [mask, mask.bool(), mask.float(), additive, additive.clamp(min=lowest), queries, queries[:, None].bool()]
    masks += [(1 - mask) * -10000]
    masks += [torch.zeros(6, 1, 5, 5).masked_fill(causal[:, None] == 0, lowest)]
    for other in masks:
        assert torch.equal(real_tokens(other), mask.bool())
        assert batch_entropy(x, other) == batch_entropy(x, mask)
    assert real_tokens(torch.zeros(2, 3)).all()  # added to attention scores, it hides nothing
    assert not real_tokens(torch.zeros(2, 3, dtype=torch.long)).any()
    with pytest.raises(ValueError, match="attention mask must be"):
        real_tokens(torch.ones(5))


@pytest.mark.parametrize("samples", ["sequence", "token"])
def test_does_not_depend_on_how_far_the_batch_is_padded(samples: Any) -> None:
    torch.manual_seed(0)
    mask = prefix_mask(16, 40)
    longest = int(mask.sum(1).max())
    short = torch.randn(16, longest, 8)
    padded = torch.cat([short, torch.full((16, 128 - longest, 8), 7.0)], 1).requires_grad_()
    short.requires_grad_()
    padded_mask = torch.cat([mask[:, :longest], torch.zeros(16, 128 - longest, dtype=torch.long)], 1)
    left = batch_entropy(short, mask[:, :longest], samples)
    right = batch_entropy(padded, padded_mask, samples)
    torch.testing.assert_close(left, right, rtol=1e-6, atol=0)
    left.backward()
    right.backward()
    assert short.grad is not None
    assert padded.grad is not None
    torch.testing.assert_close(short.grad, padded.grad[:, :longest], rtol=1e-6, atol=1e-10)
    assert padded.grad[:, longest:].count_nonzero() == 0


def test_padding_may_hold_anything() -> None:
    torch.manual_seed(0)
    mask = prefix_mask(6, 5)
    mask[:, -1] = 0
    x = torch.randn(6, 5, 3)
    poisoned = x.masked_fill(mask.unsqueeze(-1) == 0, float("nan")).requires_grad_()
    for samples in ("sequence", "token"):
        entropy = batch_entropy(poisoned, mask, samples)  # type: ignore[arg-type]
        assert entropy == batch_entropy(x, mask, samples)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(entropy, poisoned)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("samples", ["sequence", "token"])
def test_constant_units_have_no_entropy_and_no_gradient(samples: Any, masked: bool) -> None:
    torch.manual_seed(0)
    constant = torch.randn(1, 4, 3) if samples == "sequence" else torch.randn(1, 1, 3)
    x = constant.expand(8, 4, 3).clone().requires_grad_()
    entropy = batch_entropy(x, prefix_mask(8, 4) if masked else None, samples)
    entropy.backward()
    assert entropy == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_one_call_for_all_layers() -> None:
    torch.manual_seed(0)
    layers = [torch.randn(6, 5, 4), torch.randn(6, 5, 9), torch.randn(6, 5, 4, dtype=torch.bfloat16)]
    mask = prefix_mask(6, 5)
    entropies = batch_entropies(layers, mask)
    assert entropies.shape == (3,)
    for entropy, layer in zip(entropies, layers, strict=True):
        assert entropy.item() == pytest.approx(reference_entropy(layer, mask).item(), rel=1e-6)


@pytest.mark.parametrize("samples", ["sequence", "token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_four_floats_a_unit_and_no_copy(dtype: torch.dtype, samples: Any) -> None:
    x = torch.randn(16, 10, 12).to(dtype).requires_grad_()
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch_entropy(x, prefix_mask(16, 10), samples)
    units = 12 if samples == "token" else 10 * 12
    extra = [tensor for tensor in saved if tensor.data_ptr() != x.data_ptr()]
    assert len(saved) > len(extra)
    assert sum(tensor.numel() * tensor.element_size() for tensor in extra) <= 4 * units * 4


def test_nothing_outlives_the_backward_pass() -> None:
    x = torch.randn(4, 3, 2, requires_grad=True) * 2
    watch = weakref.ref(x)
    entropy = batch_entropy(x)
    entropy.backward()
    del x, entropy
    gc.collect()
    assert watch() is None


def test_gradient_of_a_layer_is_made_when_backward_comes_to_it() -> None:
    order: list[str] = []

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
            ctx.name = name
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            order.append(ctx.name)
            return gradient, None

    x = torch.randn(4, 3, 2, requires_grad=True)
    first = Mark.apply(x, "first layer")
    second = Mark.apply(first * 2, "second layer")
    entropies = batch_entropies([first, second])
    for name, node in zip(("first entropy", "second entropy"), nodes(entropies), strict=True):
        node.register_hook(lambda *_, name=name: order.append(name))
    (entropies.sum() + second.sum()).backward()
    assert order == ["second entropy", "second layer", "first entropy", "first layer"]


def nodes(entropies: Tensor) -> list[Any]:
    """The nodes of autograd that hold the activations, layer by layer."""
    found, level = [], [entropies.grad_fn]
    while level:
        found += [node for node in level if node is not None and node.name() == "_HalfSquaresBackward"]
        following = [
            after for node in level if node is not None and node not in found for after, _ in node.next_functions
        ]
        level = list(dict.fromkeys(following))
    return found


@pytest.mark.parametrize(
    ("x", "mask", "samples"),
    [
        (torch.randn(1, 5, 3), None, "sequence"),
        (torch.randn(1, 1, 3), None, "token"),
        (torch.randn(2, 2, 3), torch.tensor([[1, 0], [0, 1]]), "sequence"),
        (torch.randn(2, 2, 3), torch.tensor([[1, 0], [0, 0]]), "token"),
    ],
)
def test_refuses_units_without_two_samples(x: Tensor, mask: Tensor | None, samples: Any) -> None:
    with pytest.raises(ValueError, match="at least two samples"):
        batch_entropy(x, mask, samples)
    entropies, measured = measure_entropies([x.requires_grad_()], [mask], samples)
    assert not measured.any()
    assert entropies.tolist() == [0]
    (gradient,) = torch.autograd.grad(entropies.sum(), x)
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("x", "mask", "samples", "message"),
    [
        (torch.randn(4, 5, 3), torch.ones(4, 6), "sequence", "attention mask has shape"),
        (torch.randn(4, 5, 3), None, "row", "samples must be one of"),
        (torch.randn(4), None, "sequence", "shape"),
        (torch.randn(4, 5, 0), None, "sequence", "with features"),
        (torch.randn(4, 0), None, "token", "with features"),
        (torch.ones(4, 5, dtype=torch.long), None, "sequence", "floating point"),
    ],
)
def test_refuses_what_it_cannot_measure(x: Tensor, mask: Tensor | None, samples: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_entropy(x, mask, samples)


def test_refuses_no_layers() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        batch_entropies([])
