"""Transforms of a client's trained model before it is summed: one file each, found by name or import path.

    transform(trained, omega, client) -> trained

trained, omega: float32 (parameters,), the parameters of the client's model and of omega^t, on the rank's
device, to be left as they are; client: a `chain.Sender`. A transform that changes nothing returns its
argument. BatchNorm statistics are not transformed: they are weighted means of values, and of a difference a
variance could be negative.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.config import functions
from genfl_mpi.federation.transforms.clip import clip

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.transforms.chain import Transform

TRANSFORMS: dict[str, Transform] = {"clip": clip}


def find(config: Config) -> list[tuple[str, Transform]]:
    """Return the configured transforms with their names, in order. Raises UserError for an unknown name."""
    return [(name, functions.find(name, TRANSFORMS, "transforms")) for name in config.transforms]
