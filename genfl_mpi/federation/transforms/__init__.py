"""Transforms of a client's trained model before it is summed: one file each, found by name or import path.

    transform(trained, omega, client) -> trained

trained, omega: float32 (parameters,), the parameters of the client's model and of omega^t, on the rank's
device, to be left as they are; client: a `chain.Sender`. A transform that changes nothing returns its
argument. BatchNorm statistics are not transformed: they are weighted means of values, and of a difference a
variance could be negative. A transform that makes the upload smaller declares its bytes, and what each client
keeps for it, with `chain.compresses`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from genfl_mpi.config import functions
from genfl_mpi.federation.algorithms.interface import Array
from genfl_mpi.federation.transforms.chain import arrays_of
from genfl_mpi.federation.transforms.clip import clip
from genfl_mpi.federation.transforms.compression import qsgd, top_k
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.transforms.chain import Transform

TRANSFORMS: dict[str, Transform] = {"clip": clip, "qsgd": qsgd, "top_k": top_k}


def find(config: Config) -> list[tuple[str, Transform]]:
    """Return the configured transforms with their names, in order.

    Raises UserError for an unknown name, or if a transform follows one that compresses.
    """
    found = [(name, functions.find(name, TRANSFORMS, "transforms")) for name in config.transforms]
    for (name, transform), (later, _) in pairwise(found):
        if hasattr(transform, "size"):
            raise UserError(f"transforms: {later} would change what {name} has compressed; put {name} last")
    keeping = [name for name, transform in found if arrays_of(name, transform)]
    if keeping and config.time.driver != "synchronous":
        raise UserError(
            f"transforms: {keeping[0]} keeps arrays at the clients, which needs time.driver=synchronous; "
            "choose another transform"
        )
    return found


def client_arrays(config: Config, parameters: int) -> dict[str, Array]:
    """Return the arrays that each client keeps for the transforms, {name: Array}."""
    return {
        known: Array((parameters,), "client")
        for name, transform in find(config)
        for known in arrays_of(name, transform).values()
    }


def upload_bytes(config: Config, size: int, parameters: int) -> float:
    """Return the bytes of a client's model as it is sent. size: weights, of which `parameters` come first."""
    compress = getattr(find(config)[-1][1], "size", None) if config.transforms else None
    return 4 * size if compress is None else compress(parameters, config) + 4 * (size - parameters)
