"""Read the training labels of a published data set without its images, and without importing torchvision."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import Data

# Files below data.root, in torchvision's layout: pickled batches, with the key of their labels, and labels.
BATCHES = {
    "cifar10": ([f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)], "labels"),
    "cifar100": (["cifar-100-python/train"], "fine_labels"),
}
LABELS = {
    "mnist": "MNIST/raw/train-labels-idx1-ubyte",
    "fashion_mnist": "FashionMNIST/raw/train-labels-idx1-ubyte",
    "emnist": "EMNIST/raw/emnist-balanced-train-labels-idx1-ubyte",
}
IDX_HEADER = 8  # bytes


def read_train_labels(data: Data) -> np.ndarray | None:
    """Return the training labels of config.data, int64 (n,); None if no file here has them."""
    root = Path(data.root)
    try:
        if data.name in BATCHES:
            files, key = BATCHES[data.name]
            labels = [_read_batch(root / file)[key] for file in files]
            return np.concatenate(labels).astype(np.int64)
        if data.name in LABELS:
            return np.fromfile(root / LABELS[data.name], np.uint8, offset=IDX_HEADER).astype(np.int64)
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError):
        pass  # missing or damaged: torchvision explains it
    return None


def _read_batch(path: Path) -> dict[str, Any]:
    """Return a pickled batch of CIFAR."""
    return _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()


class _ArraysOnly(pickle.Unpickler):
    """Unpickle arrays alone. torchvision compares a file's MD5 first; here a pickle must not run code."""

    def find_class(self, module: str, name: str) -> Any:
        is_array = module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype")
        if is_array or (module, name) == ("_codecs", "encode"):  # the latter for bytes of a newer Python
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")
