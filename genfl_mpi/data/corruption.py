"""Bad clients: a stated share of them holds blurred, noisy or mislabelled samples, or claims labels that it does not hold."""

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.util import streams


def draw_misbehaving(clients, settings, seed):
    """Which clients hold bad data, bool (clients,). settings: config.misbehaving_clients."""
    chosen = streams.generator(seed, "bad clients").permutation(clients)[: round(settings.share * clients)]
    return np.isin(np.arange(clients), chosen)


def mislabel(labels, classes, rng):
    """Every label replaced by another one, each other class being as likely."""
    return (labels + rng.integers(1, classes, labels.shape)) % classes


def overclaim(histograms):
    """What clients that overclaim tell in place of their label counts, int (clients, classes): as many samples of every label."""
    return np.broadcast_to(-(-histograms.sum(1, keepdims=True) // histograms.shape[1]), histograms.shape)


def spoil(images, kind, rng):
    """uint8 (n, C, H, W) as a bad camera gives them: `blurred` (mean of 5x5 pixels), or `noisy` (normal noise of a
    quarter of the range)."""
    if kind == "blurred":
        padded = F.pad(torch.from_numpy(images.astype(np.float32)), (2, 2, 2, 2), mode="reflect")
        return F.avg_pool2d(padded, 5, stride=1).round().to(torch.uint8).numpy()
    return (
        np.clip(images + 64 * rng.standard_normal(images.shape, dtype=np.float32), 0, 255)
        .round()
        .astype(np.uint8)
    )
