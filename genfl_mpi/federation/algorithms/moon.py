"""MOON (Li et al. 2021, Eq. 3 and 4): keep a client's features near the global model's, off its last model's.

A client minimises the cross-entropy plus contrast times

    -log [ exp(cos(z, z_glob) / T) / (exp(cos(z, z_glob) / T) + exp(cos(z, z_prev) / T)) ]

z, z_glob, z_prev: features of a sample in the model in training, in omega^t, and in the model that the client
trained last; T: algorithm.temperature. Features are what the output layer reads; the paper puts a projection
head before it, as `model.name=moon_cnn` does. A comparison gives both arms the same network.

A client that has not trained yet has no last model, and trains as in FedAvg, as do all with contrast=0.
Nothing is sent besides the weights. Every client that has trained keeps its model, 4 bytes a parameter, and a
step costs two more forward passes. BatchNorm's statistics in the last model are those of omega^t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from genfl_mpi.data import datasets
from genfl_mpi.federation.algorithms.interface import Algorithm, Array, Contribution, Stage
from genfl_mpi.learning import heads, models

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Client, Tensors, Weights
    from genfl_mpi.learning.weights import FlatModel


def check(config: Config) -> None:
    """Raise UserError if the network has no output layer whose inputs are the features."""
    about = datasets.describe(config.data)
    models.check_head(config.model, len(about.classes), about.shape, "algorithm.name=moon")


def declare(parameters: int, config: Config) -> dict[str, Array]:
    """Declare every client's last model."""
    return {"last_model": Array((parameters,), "client")}


def stages(client: Client, omega: Weights, arrays: Tensors, own: Tensors, config: Config) -> list[Stage]:
    """Train once, with the contrastive loss if there is a last model."""
    settings = config.algorithm
    if not settings.contrast or not client.last:
        return [Stage(client.settings.epochs)]
    last = torch.cat([own["last_model"], omega[client.parameters :]])

    def loss(
        model: FlatModel, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features, logits = heads.features_and_logits(model.module, heads.head_of(model.module), images)
        near, far = (heads.frozen_features(model, weights, images).float() for weights in (omega, last))
        contrast = contrastive_loss(features.float(), near, far, settings.temperature)
        return F.cross_entropy(logits.float(), labels) + settings.contrast * contrast, logits

    return [Stage(client.settings.epochs, loss=loss)]


def contrastive_loss(
    features: torch.Tensor, near: torch.Tensor, far: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the mean contrastive loss of features (n, width) with those of omega^t and of the last model."""
    cosines = [F.cosine_similarity(features, other) / temperature for other in (near, far)]
    return F.softplus(cosines[1] - cosines[0]).mean()


def contribute(
    client: Client, omega: Weights, trained: Weights, arrays: Tensors, own: Tensors, config: Config
) -> Contribution:
    """Keep the trained parameters."""
    return Contribution({}, {"last_model": trained[: client.parameters]})


MOON = Algorithm(
    "moon",
    declare=declare,
    check=check,
    stages=stages,
    contribute=contribute,
    can_batch=False,
    corrects_gradients=True,
    client_cost=5 / 3,  # two more forward passes
    summary="Contrast the clients' features with those of their last model (Li et al. 2021); stores a file "
    "per client that has trained.",
)
