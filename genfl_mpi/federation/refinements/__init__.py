"""What the server does with its images after Eq. (1): one file each, found by name or import path.

    refine(omega, tools, config) -> omega

omega: float64 (size,), the weights of Eq. (1), on the CPU, to be left as they are; tools: a `tools.Tools`;
config: the run's `Config`. Called on rank 0 alone, in the order of `composition.use`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.config import functions
from genfl_mpi.federation.refinements import distillation, fine_tuning
from genfl_mpi.federation.refinements.distillation import distil
from genfl_mpi.federation.refinements.fine_tuning import fine_tune

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.refinements.tools import Refine

REFINEMENTS: dict[str, Refine] = {"fine_tune": fine_tune, "distil": distil}
PASSES_OF_TRAINING = 3  # forward passes that cost as much as a step of SGD, forward and backward
PASSES = {"fine_tune": fine_tuning.passes, "distil": distillation.passes}  # as of `passes`


def find(config: Config) -> list[tuple[str, Refine]]:
    """Return the configured refinements with their names, in order. Raises UserError for an unknown name."""
    return [(name, functions.find(name, REFINEMENTS, "composition.use")) for name in config.refinements]


def passes(config: Config, models: int, images: int) -> float:
    """Return the forward passes of a sample that the configured refinements cost in a round.

    models: of clients; images: of the server. A user's functions do not count.
    """
    return sum(PASSES[name](config, models, images) for name in config.refinements if name in PASSES)


def needs_models(config: Config) -> bool:
    """Return whether the ranks must keep their clients' models until the refinements are done."""
    return any(name != "fine_tune" for name in config.refinements)
