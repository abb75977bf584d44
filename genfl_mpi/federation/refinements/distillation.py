"""FedDF (Lin et al. 2020, algorithm 1): teach the federated model the clients' mean logits on the images.

    min_omega  KL( softmax(1/K sum_n z_n(x) / T) || softmax(z(x; omega)) ),   x in D_gen, without labels

z_n: logits of the models that the K clients of the round trained; T: distillation.temperature. The student
starts from the weights of Eq. (1). Adam with a learning rate that falls along half a cosine takes
distillation.batches steps (the paper: up to 10,000, stopped early on validation data).

The images go to every rank, 1 byte a pixel and channel, and their logits come back, 8 bytes a class: both
once a round for each image that is used, whatever the number of clients. The mean is an exact sum, so that
the targets have the same bits on any number of ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.learning.batches import on_device
from genfl_mpi.learning.device_streams import seeded
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.sections.images import Distillation
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.refinements.tools import Tools
    from genfl_mpi.learning.weights import FlatModel


def distil(omega: torch.Tensor, tools: Tools, config: Config) -> torch.Tensor:
    """Teach the federated model the mean logits of the clients' models on the images (Lin et al. 2020)."""
    if not len(tools.images) or not tools.teachers.count:
        return omega
    rng = streams.generator(config.seed, "distillation", tools.round)
    order = draw_batches(len(tools.images), config.distillation, rng)
    used, places = np.unique(order, return_inverse=True)
    device = tools.model.weights.device
    targets = tools.teachers.mean_logits(tools.images.training_images()[0][used]).float()
    targets = (targets / config.distillation.temperature).softmax(1).to(device)
    images = tools.images.normalised()[0][on_device(used, device)]
    with seeded(int(rng.integers(2**63)), device):
        match(tools.model, omega, images, targets, places.reshape(order.shape), config.distillation)
    return tools.model.weights.double().cpu()


def draw_batches(count: int, settings: Distillation, rng: np.random.Generator) -> np.ndarray:
    """Draw the images of each step, int64 (batches, batch size): all `count` in random order, repeatedly."""
    size = min(settings.batch_size, count)
    passes = -(-settings.batches * size // count)
    order = np.concatenate([rng.permutation(count) for _ in range(passes)])
    return order[: settings.batches * size].reshape(settings.batches, size)


def match(
    model: FlatModel,
    omega: torch.Tensor,
    images: torch.Tensor,
    targets: torch.Tensor,
    order: np.ndarray,
    settings: Distillation,
) -> None:
    """Minimise the divergence of the model's predictions from `targets`; leave the result in the model.

    omega: float (size,), where it starts. images: float32 (n, C, H, W); targets: float32 (n, classes),
    probabilities; order: int64 (steps, batch size), their indices.
    """
    model.load(omega.float())
    model.module.train()
    parameters = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for batch in on_device(order, images.device):
        optimizer.zero_grad()
        logits = model.module(images[batch])
        F.kl_div(logits.log_softmax(1), targets[batch], reduction="batchmean").backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    model.gather()


def passes(config: Config, models: int, images: int) -> float:
    """Return the cost of a round in forward passes of a sample: the teachers', and the student's steps."""
    steps = config.distillation.batches * min(config.distillation.batch_size, images)
    return float(models * min(images, steps) + 3 * steps) if models else 0.0
