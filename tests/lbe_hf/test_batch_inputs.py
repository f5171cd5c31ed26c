"""What is wrong with a batch before any model sees it."""

import pytest
import torch

from lbe_hf.batch_inputs import BatchInputs


def test_inputs_that_differ_only_at_padding_are_alike() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    ids = torch.tensor([[5, 6, 7], [5, 6, 8]])
    assert BatchInputs.of((), {"input_ids": ids, "attention_mask": mask}).alike
    assert not BatchInputs.of((), {"input_ids": ids}).alike
    assert BatchInputs.of((), {"input_ids": ids[:, :2], "labels": torch.tensor([0, 1])}).alike
    assert not BatchInputs.of((), {"input_ids": ids[:1]}).alike  # one example is like itself


def test_inputs_in_a_dictionary_and_by_position() -> None:
    ids = torch.tensor([[5, 6], [5, 6]])
    features = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1], [0, 0]])}
    found = BatchInputs.of((features,), {})
    assert (found.size, found.only_padding) == (2, 0.5)
    assert BatchInputs.of((torch.ones(3, 4),), {}).alike


def test_inputs_of_several_columns_are_alike_only_together() -> None:
    same, different = torch.ones(3, 4), torch.arange(12.0).view(3, 4)
    assert not BatchInputs.of((), {"first": same, "second": different}).alike
    assert BatchInputs.of((), {"pixel_values": different, "labels": torch.ones(3)}).size == 3


def test_inputs_that_are_not_finite() -> None:
    x = torch.ones(2, 3)
    x[0, 0] = float("inf")
    assert BatchInputs.of((), {"x": x}).nonfinite
    assert not BatchInputs.of((), {}).nonfinite


def test_choices_are_examples() -> None:
    mask = torch.ones(3, 2, 4)
    mask[0, 1] = 0
    found = BatchInputs.of((), {"input_ids": torch.ones(3, 2, 4), "attention_mask": mask, "labels": torch.ones(3)})
    assert found.mask is not None
    assert (found.size, found.mask.shape, found.only_padding) == (6, (6, 4), pytest.approx(1 / 6))
    codes = BatchInputs.of((), {"input_ids": torch.ones(3, 4, 2), "attention_mask": torch.ones(3, 4)})
    assert codes.size == 3  # of sound, several codes at each position
