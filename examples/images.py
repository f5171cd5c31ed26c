"""Image data of the examples: scikit-learn's digits, or the datasets of the paper, read from files.

The tests write small files in these formats; the datasets themselves were not read. There is no augmentation.
"""

import gzip
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

DATA = ["digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder"]


@dataclass
class ImageArguments:
    data: str = field(
        default="digits",
        metadata={"help": "digits: scikit-learn's; others: read from data_dir; folder: train/CLASS/* and val/CLASS/*.",
                  "choices": DATA},
    )  # fmt: skip
    data_dir: str = field(
        default=".",
        metadata={"help": "Folder of IDX files (plain or .gz), CIFAR's Python pickles, or Parquet files."},
    )
    image_size: int = field(default=64, metadata={"help": "Height and width of images from folders."})
    validation_fraction: float = field(
        default=0.2,
        metadata={"help": "Share of the training images to validate on. 0: validate on the test images."},
    )
    paper: bool = field(default=False, metadata={"help": "Use the paper's settings; other arguments win."})


class Split(NamedTuple):
    images: Tensor
    """(N, channels, height, width)"""
    labels: Tensor
    """(N,), from 0"""


class Splits(NamedTuple):
    train: Split
    validation: Split
    test: Split

    def map_images(self, function: Callable[[Tensor], Tensor]) -> "Splits":
        return Splits(*(split._replace(images=function(split.images)) for split in self))

    @property
    def classes(self) -> int:
        return int(self.train.labels.max()) + 1


def load_images(args: ImageArguments) -> Splits:
    """Read the images as floats from 0 to 1; exit with code 2 if that is not possible."""
    try:
        return _load(args)
    except Exception as error:  # A damaged pickle, archive or image may raise any.
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"error: cannot read {args.data} from --data_dir {args.data_dir}: {reason}", file=sys.stderr)
        sys.exit(2)


def _load(args: ImageArguments) -> Splits:
    if args.data == "digits" and args.data_dir != ImageArguments.data_dir:
        raise ValueError("the digits come from scikit-learn; say with --data what the folder has.")
    train, test = _read(args.data, Path(args.data_dir), args.image_size)
    _check(args.data, train, test)
    highest = 255 if train[0].dtype == np.uint8 else float(train[0].max())
    splits = [
        Split(torch.tensor(images).float() / highest, torch.tensor(labels).long()) for images, labels in (train, test)
    ]
    if args.validation_fraction == 0:
        return Splits(splits[0], splits[1], splits[1])
    # The seed is fixed, so that all runs validate on the same images.
    rest, chosen = train_test_split(
        range(len(train[1])), test_size=args.validation_fraction, random_state=0, stratify=train[1]
    )
    parts = (Split(splits[0].images[part], splits[0].labels[part]) for part in (rest, chosen))
    return Splits(*parts, splits[1])


def standardize(splits: Splits) -> Splits:
    """Scale the images by the mean and standard deviation of all training pixels."""
    mean, deviation = splits.train.images.mean(), splits.train.images.std()
    return splits.map_images(lambda images: (images - mean) / deviation)


SHAPES = {
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
}
"""Of an image: (channels, height, width)."""

Arrays = tuple[np.ndarray, np.ndarray]
"""Images (N, channels, height, width) and labels (N,)."""


def _check(data: str, train: Arrays, test: Arrays) -> None:
    """Raise a ValueError if images and labels do not belong together, or not to this data set."""
    for name, (images, labels) in (("training", train), ("test", test)):
        shape = SHAPES.get(data, images.shape[1:])
        if images.ndim != 4 or images.shape[1:] != shape or (data != "digits" and images.dtype != np.uint8):
            own = f"{images.shape[1:]} and {images.dtype}"
            raise ValueError(f"the {name} images have shape and type {own}, not {shape} and uint8.")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"there are {len(images)} {name} images, but labels of the shape {labels.shape}.")
        if labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(f"the {name} labels are not all whole numbers from 0 on.")
    unknown = sorted(set(test[1].tolist()) - set(train[1].tolist()))
    if unknown:
        raise ValueError(f"no training image has the classes {unknown} of the test images.")


def _read(data: str, folder: Path, size: int) -> tuple[Arrays, Arrays]:
    if data == "digits":
        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 1, 8, 8)
        train, test, *both = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
        return (train, both[0]), (test, both[1])
    if data == "folder":
        return _read_folder(folder, size)
    first = {"cifar10": "data_batch_1", "cifar100": "train"}.get(data, "train-images-idx3-ubyte")
    if not any((folder / name).is_file() for name in (first, f"{first}.gz")) and (parquet := _parquet_files(folder)):
        return _read_parquet(parquet)
    if data in ("mnist", "fashion_mnist"):
        train, test = (
            (read_idx(folder / f"{split}-images-idx3-ubyte")[:, None], read_idx(folder / f"{split}-labels-idx1-ubyte"))
            for split in ("train", "t10k")
        )
        return train, test
    files = {"cifar10": ([f"data_batch_{n}" for n in range(1, 6)], "test_batch"), "cifar100": (["train"], "test")}
    train_names, test_name = files[data]
    parts = [read_cifar(folder / name) for name in train_names]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True)), read_cifar(folder / test_name)


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file, plain or .gz. Header: two zeros, type, number of dimensions, dimensions."""
    packed = path.with_name(f"{path.name}.gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is not an IDX file of bytes.")
    start = 4 + 4 * content[3]
    return np.frombuffer(content, np.uint8, offset=start).reshape(np.frombuffer(content[4:start], ">u4"))


class ArrayUnpickler(pickle.Unpickler):
    """Reads plain types and NumPy arrays; refuses anything else, so that a file cannot execute code."""

    ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # the name before NumPy 2
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is not part of an array.")
        return self.ALLOWED[module, name]


def read_cifar(path: Path) -> Arrays:
    """A pickled batch of CIFAR-10, or of CIFAR-100 with its fine labels, read without executing it."""
    with path.open("rb") as file:
        batch = ArrayUnpickler(file, encoding="bytes").load()
    labels = batch[b"fine_labels"] if b"fine_labels" in batch else batch[b"labels"]
    return np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32), np.array(labels)


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """The Parquet files with the name of a split in their path, as on the Hub; hidden folders do not count."""
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*.parquet"))]
    shown = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    files = {name: [str(folder / path) for path in shown if name in path.as_posix()] for name in ("train", "test")}
    return files if all(files.values()) else {}


def _read_parquet(files: dict[str, list[str]]) -> tuple[Arrays, Arrays]:
    """One column of images, and `label` or `fine_label`."""
    splits = datasets.load_dataset("parquet", data_files=files, streaming=True)
    return _arrays(splits["train"], None), _arrays(splits["test"], None)


def _read_folder(folder: Path, size: int) -> tuple[Arrays, Arrays]:
    """`train/CLASS/*` and `val/CLASS/*`, the layout of ImageNet100; the centre of each image, in RGB."""
    splits = datasets.load_dataset("imagefolder", data_dir=str(folder), streaming=True)
    return _arrays(splits["train"], size), _arrays(splits["validation"], size)


def _arrays(rows: Iterable[dict[str, Any]], size: int | None) -> Arrays:
    images, labels = [], []
    for row in rows:
        image = next((value for value in row.values() if isinstance(value, Image.Image)), None)
        if image is None:
            raise ValueError(f"no column has images: {', '.join(row)}")
        if size is not None:
            image = ImageOps.fit(image.convert("RGB"), (size, size))
        images.append(np.atleast_3d(image).transpose(2, 0, 1))
        labels.append(row["fine_label"] if "fine_label" in row else row["label"])
    return np.stack(images), np.array(labels)
