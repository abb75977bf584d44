"""Public images: what a generator may learn from, because no client holds it."""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError


def counts(size, classes):
    """How many images of each label there are in a pool of so many: int64 (classes,), as alike as can be."""
    return size // classes + (np.arange(classes) < size % classes)


def pool(labels, size, classes):
    """Indices, int64 (size,) in rising order, of the training samples that no client holds: as many of each class.

    The same for every seed, and a smaller pool is part of a larger one: a generator that learned from a pool is public
    for every run that withholds as much. Raises UserError if a class has too few samples.
    """
    chosen = []
    for label, share in enumerate(counts(size, classes)):
        samples = np.flatnonzero(labels == label)
        if share > len(samples):
            raise UserError(
                f"data.public_pool={size} needs {share} training samples of class {label}, and there are {len(samples)}"
            )
        chosen.append(streams.generator(0, "pool", label).permutation(samples)[:share])
    return np.sort(np.concatenate(chosen))


def images(arrays, about, data, source):
    """The public images that a generator learns from, with their labels and how many were left out.

    arrays, about: the data set, as `datasets` has it; data: config.data; source: config.pretraining.images. An image that is,
    byte for byte, one of the test set is left out. Returns float32 (n, C, H, W) in [0, 1], int64 (n,), int.
    Raises UserError if there is no pool.
    """
    if source == "uci_digits":
        values, labels = uci_digits()
        if about.shape != tuple(values.shape[1:]):
            raise UserError(
                f"pretraining.images=uci_digits: these are digits like MNIST's; data.name={data.name} has others"
            )
    else:
        if not data.public_pool:
            raise UserError(
                "data.public_pool is 0: set it to the number of training images that the generator may learn from"
            )
        chosen = pool(arrays["train_labels"], data.public_pool, len(about.classes))
        values, labels = (
            torch.from_numpy(arrays["train_images"][chosen]).float() / 255,
            arrays["train_labels"][chosen],
        )
    tested = set(map(_hash, arrays["test_images"]))
    public = np.array([_hash(one) not in tested for one in (values * 255).round().byte().numpy()])
    return values[public], labels[public], int((~public).sum())


def uci_digits():
    """scikit-learn's UCI digits (1,797 of 8x8 pixels) framed as MNIST frames its own: 20x20 in the middle of 28x28.

    Returns float32 (1797, 1, 28, 28) in [0, 1] and int64 (1797,).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    values = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    values = F.interpolate(values, 20, mode="bicubic", align_corners=False).clamp(0, 1)
    return F.pad(values, (4,) * 4), digits.target.astype(np.int64)


def _hash(image):
    return hashlib.sha256(image.tobytes()).digest()
