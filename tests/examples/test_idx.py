"""MNIST's files, which each example reads by itself."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import example

IMAGES = {"train": 6, "t10k": 4}


def write_idx(path: Path, values: np.ndarray, packed: bool) -> None:
    """The format as http://yann.lecun.com/exdb/mnist described it: big-endian sizes after a magic number."""
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + bytes(values.ravel().tolist())
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.fixture(params=[False, True], ids=["plain", "gz"])
def mnist(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    generator = np.random.default_rng(0)
    written = {}
    for split, count in IMAGES.items():
        images = generator.integers(0, 256, (count, 28, 28))
        labels = generator.integers(0, 10, count)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", images, request.param)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", labels, request.param)
        written[split] = (torch.tensor(images), torch.tensor(labels))
    return tmp_path, written


@pytest.mark.parametrize("name", ["deep_mlp", "deep_cnn"])
def test_images_are_standardized_by_the_training_set(name: str, mnist: tuple[Path, dict[str, Any]]) -> None:
    folder, written = mnist
    train = written["train"][0].double()
    for dataset, (images, labels) in zip(
        example(name).load_images("mnist", str(folder)), written.values(), strict=True
    ):
        assert torch.stack([row["labels"] for row in dataset]).tolist() == labels.tolist()
        expected = ((images.double() - train.mean()) / train.std()).unsqueeze(1).float()
        torch.testing.assert_close(torch.stack([row["images"] for row in dataset]), expected)


def test_the_residual_network_gets_larger_ones(mnist: tuple[Path, dict[str, Any]]) -> None:
    train, test = example("resnet").load_images("mnist", str(mnist[0]))
    assert [len(train), len(test)] == [6, 4]
    assert train[0]["pixel_values"].shape == (1, 32, 32)
    assert [row["labels"].item() for row in test] == mnist[1]["t10k"][1].tolist()


def test_the_autoencoder_gets_them_from_0_to_1(mnist: tuple[Path, dict[str, Any]]) -> None:
    for images, (written, _) in zip(
        example("autoencoder").load_images("mnist", str(mnist[0])), mnist[1].values(), strict=True
    ):
        torch.testing.assert_close(images[:, 0], written.float() / mnist[1]["train"][0].max())
