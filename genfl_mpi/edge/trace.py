"""What a finished run leaves of its rounds for pricing: who trained on how much, and how many images there were."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trace:
    """clients: N. cohorts: int arrays (K,), of each round. samples: int arrays (K,), on which these trained. epochs: int arrays
    (K,), how often over them. sample_flops: of training on a sample once; augmented_epochs: passes of the augmented model in a
    round. weights_bytes: of a model. new_images: int (rounds,), generated in each; pool: int (rounds,), on which the augmented
    model trained. shape: (C, H, W) of an image; image_size: times as many bytes to send as this needs. image_flops: of
    generating one; generator_bytes: of sending the generator. value: float64 (N,), of each client's labels and data for the
    cohort, in [0, 1]. missing: float64 (N,), the share of the labels that each client lacks, of which P5 asks, and P3 without
    `made`. placement: where the run's images were, one of `placements.PLACEMENTS`. made: with P3, int arrays (K,), how many
    images each client of a round trained on; None: those of the pool whose labels it lacks.
    """

    clients: int
    cohorts: list
    samples: list
    epochs: list
    sample_flops: float
    augmented_epochs: int
    weights_bytes: float
    new_images: np.ndarray
    pool: np.ndarray
    shape: tuple
    value: np.ndarray
    image_flops: float = 0.0
    generator_bytes: float = 0.0
    missing: np.ndarray | None = None
    image_size: float = 1.0
    placement: str = "P1"
    made: list | None = None


def value_of_labels(histograms):
    """Label coverage times the quality of the mix, float64 (N,): (labels held / classes) (1 - EMD_n / 2), and 0 for a client
    that shares nothing. histograms: int (N, classes), as shared."""
    totals = histograms.sum(1, keepdims=True)
    population = histograms.sum(0) / max(1, histograms.sum())
    emd = np.abs(histograms / np.maximum(totals, 1) - population).sum(1)
    return np.where(totals[:, 0] > 0, (histograms > 0).mean(1) * (1 - emd / 2), 0.0)


def image_bytes(trace, settings):
    """Bytes of an image as it is sent. settings: world.images, whose bits are of a pixel of three channels."""
    channels, height, width = trace.shape
    if settings.side is not None:
        height = width = settings.side
    return trace.image_size * np.ceil(height * width * settings.bits_per_pixel * channels / 3 / 8)
