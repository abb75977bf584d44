"""Misbehaving clients: blurred, noisy or mislabelled samples, and claims of labels that they do not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.sections.adversity import Attack
    from genfl_mpi.config.sections.samples import MisbehavingClients


def draw_misbehaving(clients: int, settings: MisbehavingClients, seed: int) -> np.ndarray:
    """Draw the misbehaving clients: bool (clients,). settings: config.misbehaving_clients."""
    chosen = streams.generator(seed, "bad clients").permutation(clients)[: round(settings.share * clients)]
    return np.isin(np.arange(clients), chosen)


def draw_attackers(clients: int, settings: Attack, seed: int) -> np.ndarray:
    """Draw the attackers: bool (clients,). settings: config.attack."""
    chosen = streams.generator(seed, "attackers").permutation(clients)[: round(settings.share * clients)]
    return np.isin(np.arange(clients), chosen)


def mislabel(labels: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Replace every label by a wrong one, drawn uniformly from the other classes."""
    return (labels + rng.integers(1, classes, labels.shape)) % classes


def overclaim(histograms: np.ndarray) -> np.ndarray:
    """Return the histograms of overclaiming clients, int (clients, classes): one count for all labels."""
    return np.broadcast_to(-(-histograms.sum(1, keepdims=True) // histograms.shape[1]), histograms.shape)


def degrade(images: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Degrade uint8 images (n, C, H, W) as a bad camera would.

    kind: `blurred`, mean of 5x5 pixels; `noisy`, normal noise with a standard deviation of 64, a quarter of
    the range.
    """
    if kind == "blurred":
        padded = F.pad(torch.from_numpy(images.astype(np.float32)), (2, 2, 2, 2), mode="reflect")
        return F.avg_pool2d(padded, 5, stride=1).round().to(torch.uint8).numpy()
    return (
        np.clip(images + 64 * rng.standard_normal(images.shape, dtype=np.float32), 0, 255)
        .round()
        .astype(np.uint8)
    )
