"""Fine-tuning: train the federated model on the server's images, after Eq. (1).

    omega^{t+1} = SGD(omega, D_gen)

by the settings of `augmented`. Unlike the augmented model, which starts from omega^t and is trained while
the clients train, it starts from their average and is trained after them. Nothing is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.learning.training import settings_at_round, train
from genfl_mpi.util import streams

if TYPE_CHECKING:
    import torch

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.refinements.tools import Tools


def fine_tune(omega: torch.Tensor, tools: Tools, config: Config) -> torch.Tensor:
    """Train the federated model on the images, by the settings of `augmented`."""
    if not len(tools.images):
        return omega
    settings = settings_at_round(config.augmented, tools.round)
    rng = streams.generator(config.seed, "fine tuning", tools.round)
    train(
        tools.model, omega.float().to(tools.model.weights.device), *tools.images.normalised(), settings, rng
    )
    return tools.model.weights.double().cpu()


def passes(config: Config, models: int, images: int) -> float:
    """Return the cost of a round in forward passes of a sample."""
    return 3.0 * config.augmented.epochs * images
