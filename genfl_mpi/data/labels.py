"""What clients hold, what they share of it with the server (section III-A), and how skewed it is."""

import numpy as np

from genfl_mpi.data.partition import blocks
from genfl_mpi.util import streams


def label_histograms(labels, pointers, classes):
    """int32 (clients, classes): how many samples of each label every client holds. labels: int (n,), of the first client's
    samples, then the second's and so on."""
    histograms = np.empty((len(pointers) - 1, classes), dtype=np.int32)
    for block in blocks(len(histograms)):
        ends = pointers[block.start : block.stop + 1]
        owners = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
        cells = np.bincount(owners * classes + labels[ends[0] : ends[-1]], minlength=histograms[block].size)
        histograms[block] = cells.reshape(-1, classes)
    return histograms


def earth_movers_distance(histograms):
    """sum_i |p_n(y=i) - p(y=i)| of every client, float64 (clients,), in [0, 2) (Zhao et al. 2018)."""
    population = histograms.sum(0) / histograms.sum()
    return np.abs(histograms / histograms.sum(1, keepdims=True) - population).sum(1)


def share(histograms, settings, seed):
    """What the server is told: int32 (clients, classes). settings: config.label_sharing.

    A client shares its histogram, or 0/1 for the labels it holds. With `epsilon` a client's message is differentially
    private for one of its samples, whose replacement moves two counts by one, or changes two bits at most: Laplace noise
    of scale 2/epsilon on every count, rounded and cut at zero (Dwork et al. 2006), or randomised response with
    epsilon/2 on every bit (Warner 1965). A client that refuses shares zeros. Returns int32 (clients, classes), and who told, bool (clients,).
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
    told = np.ones(len(histograms), dtype=bool)
    shared[refusing], told[refusing] = 0, False
    return shared, told


def tells(clients, settings, seed):
    """Who tells its labels for the pay, bool (clients,): whom it costs no more. settings: config.incentive."""
    if settings.labels is None:
        return np.ones(clients, dtype=bool)
    return streams.generator(seed, "label cost").uniform(*settings.label_cost, clients) <= settings.labels
