"""The augmented model omega_a (III-B): local training at the server, on its generated images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.learning.training import settings_at_round, train
from genfl_mpi.util import streams

if TYPE_CHECKING:
    import torch

    from genfl_mpi.config.sections.local_training import Training
    from genfl_mpi.federation.server_images import ServerImages
    from genfl_mpi.learning.training import Report
    from genfl_mpi.learning.weights import FlatModel


def augment(
    model: FlatModel, omega: torch.Tensor, images: ServerImages, settings: Training, seed: int, round: int
) -> tuple[torch.Tensor, Report] | tuple[None, None]:
    """Train omega_a from the global weights on all images of the server.

    Returns omega_a, float32 (size,) in main memory, and the `Report` of its training; (None, None) while
    there are no images. model: rank 0's `FlatModel`, which is overwritten; omega: float32 (size,), on its
    device; settings: config.augmented; round: 0 is the first. Raises ArithmeticError if the weights are not
    finite.
    """
    if not len(images):
        return None, None
    report = train(
        model,
        omega,
        *images.normalised(),
        settings_at_round(settings, round),
        streams.generator(seed, "augmented", round),
    )
    omega_a = model.weights.to("cpu", copy=True)
    if not omega_a.sum().isfinite():
        raise FloatingPointError(
            "the augmented model's weights are not finite; a smaller augmented.lr may help"
        )
    return omega_a, report
