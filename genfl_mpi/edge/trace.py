"""Describe what pricing needs of a run's rounds: who trained on how much, and the number of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genfl_mpi.config.world import Images


@dataclass(frozen=True)
class Tiers:
    """What the edge servers of a run with time.driver=tiers did.

    cloud_every: rounds for each average at the cloud. new_images: int (rounds, cells), generated at each edge
    server; pool: int (rounds, cells), images that it has. Both are None if the cloud generates.
    """

    cloud_every: int
    new_images: np.ndarray | None = None
    pool: np.ndarray | None = None


@dataclass(frozen=True)
class Trace:
    """The rounds of a run.

    clients: N. cohorts: int arrays (K,), one for each round. samples: int arrays (K,), samples of each client
    of the cohort. epochs: int arrays (K,), passes over them. sample_flops: FLOPs of training on a sample
    once. client_cost: of a client's step, relative to plain SGD. augmented_epochs: passes of the augmented
    model in a round. refine_flops: float64 (rounds,), of the server after Eq. (1); None: 0. weights_bytes:
    size of a model. upload_bytes: of a model as a client sends it, None for the same; protocol_bytes: what it
    also receives, with secure aggregation. new_images: int (rounds,), generated in each round; pool: int
    (rounds,), images on which the augmented model trained. shape: (C, H, W) of an image; image_size: factor
    on the bytes to send for one. image_flops: FLOPs of generating one; generator_bytes: size of the
    generator. value: float64 (N,), value of each client's labels and data for the cohort, in [0, 1]. missing:
    float64 (N,), share of the labels that each client lacks, which P5 needs, and P3 without `made`.
    placement: where the run's images were generated, one of `placements.PLACEMENTS`. made: with P3, int
    arrays (K,), how many images each client of a round trained on; None: the images of the pool whose labels
    it lacks. tiers: None in a run without edge servers.
    """

    clients: int
    cohorts: Sequence[Any]
    samples: Sequence[np.ndarray]
    epochs: Sequence[np.ndarray | int]
    sample_flops: float
    augmented_epochs: int
    weights_bytes: float
    new_images: np.ndarray
    pool: np.ndarray
    shape: tuple[int, ...]
    value: np.ndarray
    image_flops: float = 0.0
    generator_bytes: float = 0.0
    missing: np.ndarray | None = None
    image_size: float = 1.0
    placement: str = "P1"
    made: Sequence[np.ndarray] | None = None
    client_cost: float = 1.0
    refine_flops: np.ndarray | None = None
    upload_bytes: float | None = None
    protocol_bytes: float = 0.0
    tiers: Tiers | None = None


def label_value(histograms: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return label coverage times the quality of the mix, float64 (N,).

    That is (labels held / classes) (1 - EMD_n / 2), and 0 for a client that shares no labels. histograms: int
    (N, classes), as shared; distances: float64 (N,), their earth mover's distances to the sum of all, NaN for
    rows of zeros.
    """
    return np.nan_to_num((histograms > 0).mean(1) * (1 - distances / 2))


def image_bytes(trace: Trace, settings: Images) -> float:
    """Return the bytes of a transmitted image. settings: world.images, with bits per pixel of 3 channels.

    A sample that is no image takes a byte for each of its values.
    """
    if len(trace.shape) != 3:
        return trace.image_size * math.prod(trace.shape)
    channels, height, width = trace.shape
    if settings.side is not None:
        height = width = settings.side
    return trace.image_size * np.ceil(height * width * settings.bits_per_pixel * channels / 3 / 8)
