"""Public images, held by no client, from which a generator may learn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import Data
    from genfl_mpi.data.descriptions import Description


def class_counts(size: int, classes: int) -> np.ndarray:
    """Divide a pool of `size` images over the labels: int64 (classes,), which differ by at most one."""
    return size // classes + (np.arange(classes) < size % classes)


def public_pool(labels: np.ndarray, size: int, classes: int) -> np.ndarray:
    """Choose the training samples of the public pool, evenly over the classes; return indices, int64 (size,).

    Indices ascend. The pool is the same for every seed, and a smaller pool is a subset of a larger one: a
    generator trained on a pool is public for every run that withholds at least that pool. Raises UserError if
    a class has too few samples.
    """
    chosen = []
    for label, share in enumerate(class_counts(size, classes)):
        samples = np.flatnonzero(labels == label)
        if share > len(samples):
            raise UserError(
                f"data.public_pool={size} needs {share} training samples of class {label}, but the data set "
                f"has {len(samples)}; use a smaller pool"
            )
        chosen.append(streams.generator(0, "pool", label).permutation(samples)[:share])
    return np.sort(np.concatenate(chosen))


def public_images(
    arrays: Mapping[str, np.ndarray], about: Description, data: Data, source: str
) -> tuple[torch.Tensor, np.ndarray, int]:
    """Return the public images for a generator, their labels, and the number of images excluded.

    Excludes images that are byte for byte in the test set. arrays, about: the data set, as of `datasets.load`
    and `datasets.describe`; data: config.data; source: config.pretraining.images. Returns float32 (n, C, H,
    W) in [0, 1], int64 (n,), int. Raises UserError if the pool is empty, or if the UCI digits do not match
    the data set.
    """
    if source == "uci_digits":
        values, labels = uci_digits()
        if about.shape != tuple(values.shape[1:]):
            raise UserError(
                "pretraining.images=uci_digits: its 28x28 digits, like MNIST's, do not match "
                f"data.name={data.name}; set pretraining.images=public_pool"
            )
    else:
        if not data.public_pool:
            raise UserError(
                "data.public_pool is 0; set it to the number of training images from which the generator "
                "may learn"
            )
        chosen = public_pool(arrays["train_labels"], data.public_pool, len(about.classes))
        values, labels = (
            torch.from_numpy(arrays["train_images"][chosen]).float() / 255,
            arrays["train_labels"][chosen],
        )
    test_hashes = set(map(_hash, arrays["test_images"]))
    public = np.array([_hash(one) not in test_hashes for one in (values * 255).round().byte().numpy()])
    return values[public], labels[public], int((~public).sum())


def uci_digits() -> tuple[torch.Tensor, np.ndarray]:
    """Return scikit-learn's UCI digits (1,797 of 8x8 pixels) in MNIST's frame: 20x20 in the middle of 28x28.

    Returns float32 (1797, 1, 28, 28) in [0, 1] and int64 (1797,).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    values = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    values = F.interpolate(values, 20, mode="bicubic", align_corners=False).clamp(0, 1)
    return F.pad(values, (4,) * 4), digits.target.astype(np.int64)


def _hash(image: np.ndarray) -> bytes:
    return hashlib.sha256(image.tobytes()).digest()
