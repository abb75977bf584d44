"""Clients' label histograms, the labels that they share with the server (section III-A), and their skew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.data.partition import blocks
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import LabelSharing
    from genfl_mpi.config.world import Incentive


def label_histograms(labels: np.ndarray, pointers: np.ndarray, classes: int) -> np.ndarray:
    """Count each client's samples of each label: int32 (clients, classes).

    labels: int (n,), ordered by client; client n has labels[pointers[n]:pointers[n + 1]].
    """
    histograms = np.empty((len(pointers) - 1, classes), dtype=np.int32)
    for block in blocks(len(histograms)):
        ends = pointers[block.start : block.stop + 1]
        owners = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        cells = np.bincount(owners * classes + labels[ends[0] : ends[-1]], minlength=histograms[block].size)
        histograms[block] = cells.reshape(-1, classes)
    return histograms


def earth_movers_distance(histograms: np.ndarray, population: np.ndarray | None = None) -> np.ndarray:
    """Return the EMD of each row of label counts to a mix of labels, float64 (n,) in [0, 2].

    sum_i |p_n(y=i) - p(y=i)| for row n (Zhao et al. 2018). histograms: int (n, classes). population: int
    (classes,), the counts of the mix; the sum of all rows by default. NaN for a row of zeros, for example a
    client that shared nothing.
    """
    totals = histograms.sum(1, keepdims=True)
    if population is None:
        population = histograms.sum(0)
    mix = population / max(1, population.sum())
    distance = np.abs(histograms / np.maximum(totals, 1) - mix).sum(1)
    return np.where(totals[:, 0] > 0, distance, np.nan)


def share_labels(histograms: np.ndarray, settings: LabelSharing, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the labels that clients share, int32 (clients, classes), and which clients do, bool (clients,).

    settings: config.label_sharing. A client shares its histogram, or 0/1 for each label it holds; a client
    that refuses shares zeros.

    With `epsilon` a client's message is differentially private for one of its samples. Replacing a sample
    changes two counts by one each, or at most two bits. Hence Laplace noise of scale 2/epsilon on every
    count, rounded and clipped at zero (Dwork et al. 2006), or randomised response with epsilon/2 on every bit
    (Warner 1965).
    """
    rng = streams.generator(seed, "labels")
    shared = histograms
    if settings.payload == "presence":
        shared = (histograms > 0).astype(np.int32)
        if settings.epsilon:
            lie = rng.random(shared.shape) < 1 / (1 + np.exp(min(700, settings.epsilon / 2)))
            shared = np.where(lie, 1 - shared, shared)
    elif settings.epsilon:
        noisy = shared + rng.laplace(scale=2 / settings.epsilon, size=shared.shape)
        shared = np.clip(np.rint(noisy), 0, np.iinfo(np.int32).max)
    refusing = rng.permutation(len(histograms))[: round(settings.refusal_rate * len(histograms))]
    shared = shared.astype(np.int32)
    sharing = np.ones(len(histograms), dtype=bool)
    shared[refusing], sharing[refusing] = 0, False
    return shared, sharing


def accepts_pay(clients: int, settings: Incentive, seed: int) -> np.ndarray:
    """Draw which clients share their labels for the pay, bool (clients,): those whose cost it covers.

    settings: config.incentive.
    """
    if settings.labels is None:
        return np.ones(clients, dtype=bool)
    return streams.generator(seed, "label cost").uniform(*settings.label_cost, clients) <= settings.labels
