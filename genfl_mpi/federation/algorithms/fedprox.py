"""FedProx (Li et al. 2020, Eq. 2): a client minimises F_n(w) + mu / 2 |w - omega^t|^2.

mu: algorithm.mu; with 0 it is FedAvg. It sends and keeps nothing besides the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.federation.algorithms.interface import Algorithm, Stage

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Client, Tensors, Weights


def stages(client: Client, omega: Weights, arrays: Tensors, own: Tensors, config: Config) -> list[Stage]:
    """Train once, with the proximal term."""
    return [Stage(client.settings.epochs, prox=config.algorithm.mu)]


FEDPROX = Algorithm(
    "fedprox",
    stages=stages,
    summary="Pull the clients towards the global model by a proximal term (Li et al. 2020).",
)
