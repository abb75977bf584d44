"""Local test data: the test set, divided over the clients by their label mixes."""

from __future__ import annotations

import numpy as np

from genfl_mpi.util import streams


def divide_test(histograms: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the test set: each class in proportion to the clients' training samples of it.

    histograms: int (clients, classes); labels: int (n,), of the test set. Returns int64 pointers (clients +
    1,) and indices: client n has the test samples indices[pointers[n]:pointers[n + 1]], in ascending order.
    Parts are disjoint. Remainders go to the largest fractions, then to the lowest client. Samples of classes
    that no client holds are not given out.
    """
    owners = np.full(len(labels), -1, dtype=np.int64)
    for label, held in enumerate(histograms.T):
        samples, total = np.flatnonzero(labels == label), held.sum()
        if not total:
            continue
        counts, fractions = np.divmod(held * len(samples), total)
        left = len(samples) - counts.sum()
        counts[np.argsort(-fractions, kind="stable")[:left]] += 1
        order = streams.generator(seed, "local test", label).permutation(samples)
        owners[order] = np.repeat(np.arange(len(held)), counts)
    given = np.flatnonzero(owners >= 0)
    indices = given[np.argsort(owners[given], kind="stable")]
    return np.searchsorted(owners[indices], np.arange(len(histograms) + 1)), indices
