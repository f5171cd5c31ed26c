"""Small files in the formats of the paper's data sets, written here from their descriptions."""

import gzip
import os
import pickle
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from programs import example

COUNTS = {"train": 20, "test": 6}
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def images() -> ModuleType:
    return example("images")


def load(images: ModuleType, data: str, folder: Path, **settings: Any) -> Any:
    return images.load_images(images.ImageArguments(data=data, data_dir=str(folder), **settings))


def refused(images: ModuleType, data: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that is printed, with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        load(images, data, folder)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot read {data} from --data_dir {folder}: ")
    return line


def random_images(*shape: int, classes: int = 2) -> Arrays:
    generator = np.random.default_rng(0)
    return {
        split: (generator.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % classes)
        for split, count in COUNTS.items()
    }


def assert_holds(split: Any, images: np.ndarray, labels: np.ndarray) -> None:
    """Both (N, channels, height, width), the given ones from 0 to 255."""
    torch.testing.assert_close(split.images, torch.tensor(images / 255, dtype=torch.float32))
    assert split.labels.tolist() == labels.tolist()


def write_idx(path: Path, values: np.ndarray, packed: bool, kind: int = 8) -> None:
    """The format as http://yann.lecun.com/exdb/mnist described it: big-endian sizes after a magic number."""
    content = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape) + bytes(values.ravel().tolist())
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("data", ["mnist", "fashion_mnist"])
def test_idx(images: ModuleType, tmp_path: Path, data: str, packed: bool) -> None:
    written = random_images(28, 28)
    for split, name in (("train", "train"), ("test", "t10k")):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", written[split][0], packed)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", written[split][1], packed)
    splits = load(images, data, tmp_path, validation_fraction=0)
    assert_holds(splits.train, written["train"][0][:, None], written["train"][1])
    assert_holds(splits.test, written["test"][0][:, None], written["test"][1])
    assert splits.validation is splits.test


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Protocol 2 as Python 2 with NumPy 1 wrote it: byte strings, and the old name of a module."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]  # noqa: RUF012

    def save_bytes(self, value: bytes) -> None:
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or value.__qualname__}\n".encode())
        self.memoize(value)

    dispatch[bytes] = save_bytes
    dispatch[type(np.empty(0).__reduce__()[0])] = save_global
    dispatch[type] = save_global


def write_cifar(path: Path, data: np.ndarray, **labels: list[int]) -> None:
    batch = {b"data": data.reshape(len(data), -1), **{name.encode(): values for name, values in labels.items()}}
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(batch)


def test_pickles_of_cifar10(images: ModuleType, tmp_path: Path) -> None:
    written = random_images(3, 32, 32)
    for part in range(5):
        pixels, labels = (values[4 * part : 4 * part + 4] for values in written["train"])
        write_cifar(tmp_path / f"data_batch_{part + 1}", pixels, labels=labels.tolist())
    write_cifar(tmp_path / "test_batch", written["test"][0], labels=written["test"][1].tolist())
    assert b"cnumpy.core.multiarray\n_reconstruct" in (tmp_path / "test_batch").read_bytes()
    splits = load(images, "cifar10", tmp_path, validation_fraction=0)
    assert_holds(splits.train, *written["train"])
    assert_holds(splits.test, *written["test"])


def test_pickles_of_cifar100_have_fine_labels(images: ModuleType, tmp_path: Path) -> None:
    written = random_images(3, 32, 32, classes=5)
    for split, (pixels, labels) in written.items():
        write_cifar(tmp_path / split, pixels, coarse_labels=[0] * len(labels), fine_labels=labels.tolist())
    splits = load(images, "cifar100", tmp_path, validation_fraction=0)
    assert_holds(splits.train, *written["train"])
    assert splits.classes == 5


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_executes_nothing(
    images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int
) -> None:
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps({"data": Hostile(tmp_path / "executed")}, protocol))
    assert re.search(r"asks for (posix|nt)\.mkdir", refused(images, "cifar100", tmp_path, capsys))
    assert not (tmp_path / "executed").exists()
    pickle.loads((tmp_path / "train").read_bytes())
    assert (tmp_path / "executed").exists()  # so that the file would have done it


@pytest.mark.parametrize(
    "name", ["builtins.eval", "numpy.load", "numpy.ndarray.tofile", "numpy.core.multiarray.fromfile"]
)
def test_names_that_are_no_array(
    images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    module, _, attribute = name.rpartition(".")
    (tmp_path / "train").write_bytes(f"c{module}\n{attribute}\n.".encode())
    assert f"asks for {name}, which is not part of an array" in refused(images, "cifar100", tmp_path, capsys)


@pytest.mark.parametrize("columns", [("img", "label"), ("img", "fine_label")])
def test_parquet(images: ModuleType, tmp_path: Path, columns: tuple[str, str]) -> None:
    """As the Hub has CIFAR, with encoded images."""
    written = random_images(32, 32, 3)
    for split, (pixels, labels) in written.items():
        rows = {columns[0]: [Image.fromarray(image) for image in pixels], columns[1]: labels.tolist()}
        rows["coarse_label"] = [7] * len(labels)
        table = datasets.Dataset.from_dict(rows).cast_column(columns[0], datasets.Image())
        table.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    splits = load(images, "cifar10", tmp_path, validation_fraction=0)
    for split, (pixels, labels) in written.items():
        assert_holds(getattr(splits, split), pixels.transpose(0, 3, 1, 2), labels)


def test_parquet_files_of_something_else(
    images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the packages of a virtual environment beside the data."""
    for hidden in (".venv/lib", "other"):
        (tmp_path / hidden).mkdir(parents=True)
    for name in (".venv/lib/train.parquet", ".venv/lib/test.parquet", "other/rows.parquet"):
        (tmp_path / name).write_bytes(b"not Parquet")
    assert "train-images-idx3-ubyte" in refused(images, "mnist", tmp_path, capsys)
    for split in ("train", "test"):
        datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(tmp_path / f"{split}.parquet")
    assert "no column has images: text, label" in refused(images, "cifar10", tmp_path, capsys)
    written = random_images(28, 28)
    for split, name in (("train", "train"), ("test", "t10k")):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", written[split][0], packed=True)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", written[split][1], packed=True)
    assert_holds(load(images, "mnist", tmp_path, validation_fraction=0).test, written["test"][0][:, None],
                 written["test"][1])  # fmt: skip


def test_parquet_of_grey_images(images: ModuleType, tmp_path: Path) -> None:
    written = random_images(28, 28)
    for split, (pixels, labels) in written.items():
        rows = {"image": [Image.fromarray(image) for image in pixels], "label": labels.tolist()}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    splits = load(images, "mnist", tmp_path, validation_fraction=0)
    assert_holds(splits.train, written["train"][0][:, None], written["train"][1])


def test_folders_of_images(images: ModuleType, tmp_path: Path) -> None:
    """Grey and coloured ones of different sizes; class names decide the labels."""
    colours = {"n01440764": (200, 0, 0), "n01443537": (0, 0, 90)}
    for split, count in (("train", 3), ("val", 2)):
        for name, colour in colours.items():
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (40 + index, 30), colour).save(tmp_path / split / name / f"{index}.png")
    Image.new("L", (20, 30), 50).save(tmp_path / "train" / "n01443537" / "grey.png")
    splits = load(images, "folder", tmp_path, validation_fraction=0, image_size=16)
    assert splits.train.images.shape == (7, 3, 16, 16)
    assert splits.test.images.shape == (4, 3, 16, 16)
    seen = {(label, tuple((255 * image[:, 8, 8]).round().int().tolist()))
            for image, label in zip(splits.train.images, splits.train.labels.tolist(), strict=True)}  # fmt: skip
    assert seen == {(0, (200, 0, 0)), (1, (0, 0, 90)), (1, (50, 50, 50))}


@pytest.mark.parametrize("data", ["mnist", "cifar10", "cifar100", "folder"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\x00\x08\x03\x00"], ids=["missing", "empty", "cut off"])
def test_missing_and_damaged_files(
    images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, content: bytes | None
) -> None:
    for name in ("train-images-idx3-ubyte", "data_batch_1", "train") if content is not None else ():
        (tmp_path / name).write_bytes(content)
    refused(images, data, tmp_path, capsys)


PIXELS, LABELS = random_images(28, 28)["train"]


def write_mnist(folder: Path, kind: int = 8, **changed: np.ndarray) -> None:
    train, test = random_images(28, 28).values()
    arrays = {
        "train-images-idx3-ubyte": changed.get("pixels", train[0]),
        "train-labels-idx1-ubyte": changed.get("labels", train[1]),
        "t10k-images-idx3-ubyte": test[0],
        "t10k-labels-idx1-ubyte": changed.get("test_labels", test[1]),
    }
    for name, values in arrays.items():
        write_idx(folder / name, values, packed=False, kind=kind)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"labels": LABELS[:10]}, "there are 20 training images, but labels of the shape (10,)"),
        ({"labels": np.resize(LABELS, 30)}, "there are 20 training images, but labels of the shape (30,)"),
        ({"labels": LABELS[:, None]}, "labels of the shape (20, 1)"),
        ({"pixels": PIXELS[:, :, 0]}, "shape and type (1, 28) and uint8, not (1, 28, 28)"),
        ({"pixels": PIXELS[:, :14, :14]}, "shape and type (1, 14, 14) and uint8, not (1, 28, 28)"),
        ({"labels": 0 * LABELS}, "no training image has the classes [1]"),
        (
            {"labels": np.eye(20, dtype=int)[0], "test_labels": np.zeros(6, int)},
            "Classes with too few members are: [1]",
        ),
        ({"kind": 9}, "is not an IDX file of bytes"),
    ],
)
def test_files_that_do_not_match(
    images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], reason: str
) -> None:
    write_mnist(tmp_path)
    load(images, "mnist", tmp_path)
    write_mnist(tmp_path, **changed)
    assert reason in refused(images, "mnist", tmp_path, capsys)


@pytest.mark.parametrize(
    ("pixels", "labels", "reason"),
    [
        (np.zeros((20, 3072)), [0, 1] * 10, "shape and type (3, 32, 32) and float64, not (3, 32, 32) and uint8"),
        (np.zeros((20, 3072), np.uint8), [0, -1] * 10, "not all whole numbers from 0 on"),
        (np.zeros((20, 3072), np.uint8), [0, 0.5] * 10, "not all whole numbers from 0 on"),
        (np.zeros((20, 3072), np.uint8), ["cat", "dog"] * 10, "not all whole numbers from 0 on"),
        (np.zeros((20, 3072), np.uint8), [0, 1] * 7, "there are 20 training images, but labels of the shape (14,)"),
    ],
)
def test_batches_of_something_else(
    images: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pixels: np.ndarray,
    labels: list[Any],
    reason: str,
) -> None:
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps({b"data": pixels, b"fine_labels": labels}))
    assert reason in refused(images, "cifar100", tmp_path, capsys)


def test_parquet_of_another_data_set(images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, (pixels, labels) in random_images(32, 32, 3).items():
        rows = {"img": [Image.fromarray(image) for image in pixels], "label": labels.tolist()}
        table = datasets.Dataset.from_dict(rows).cast_column("img", datasets.Image())
        table.to_parquet(tmp_path / f"{split}.parquet")
    assert "(3, 32, 32) and uint8, not (1, 28, 28)" in refused(images, "mnist", tmp_path, capsys)


def test_a_pickle_larger_than_the_memory(
    images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "numpy.core.multiarray\n_reconstruct"
    array = f"c{name}\n(cnumpy\nndarray\n(I{10**15}\ntS'B'\ntR."
    (tmp_path / "train").write_bytes(array.encode())
    assert "Unable to allocate" in refused(images, "cifar100", tmp_path, capsys)


def test_a_damaged_archive(images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = bytearray(gzip.compress(bytes(range(256)) * 40))
    packed[20:40] = bytes(20)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(packed)
    refused(images, "mnist", tmp_path, capsys)


def test_a_folder_that_digits_would_ignore(
    images: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "say with --data what the folder has" in refused(images, "digits", tmp_path, capsys)


def test_digits_are_split_once_and_for_all(images: ModuleType) -> None:
    first, again = (load(images, "digits", Path()) for _ in range(2))
    assert [len(split.labels) for split in first] == [1149, 288, 360]
    assert all(torch.equal(one.images, other.images) for one, other in zip(first, again, strict=True))
    every = torch.cat([split.images.flatten(1) for split in first])
    assert len(every.unique(dim=0)) == 1797  # no image is in two splits
    assert first.train.labels.bincount(minlength=10).min() > 100
    both = load(images, "digits", Path(), validation_fraction=0)
    assert len(both.train.labels) == 1149 + 288
    assert torch.equal(both.test.images, first.test.images)


def test_standardized_by_the_training_images(images: ModuleType) -> None:
    splits = load(images, "digits", Path())
    train, test = (split.images.double().numpy() for split in (splits.train, splits.test))
    standardized = images.standardize(splits)
    expected = (test - train.mean()) / train.std(ddof=1)
    torch.testing.assert_close(standardized.test.images, torch.tensor(expected, dtype=torch.float32))
    assert standardized.test.labels is splits.test.labels
