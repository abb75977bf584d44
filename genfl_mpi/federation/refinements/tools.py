"""What a refinement works with on rank 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.server_images import ServerImages
    from genfl_mpi.federation.teachers import Teachers
    from genfl_mpi.learning.weights import FlatModel


class Tools(NamedTuple):
    """What the server has after Eq. (1).

    round: 0 is the first. model: rank 0's `FlatModel`, which may be overwritten, and is by each question to
    the teachers. images: the server's. teachers: the models that the clients trained in this round.
    """

    round: int
    model: FlatModel
    images: ServerImages
    teachers: Teachers


Refine: TypeAlias = "Callable[[torch.Tensor, Tools, Config], torch.Tensor]"
