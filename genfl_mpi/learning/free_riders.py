"""Clients that return a model without training: plain and disguised free-riders (Fraboni et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.learning.training import Report

if TYPE_CHECKING:
    from genfl_mpi.learning.weights import FlatModel

BATCH = 256  # samples in one forward pass


@torch.no_grad()
def free_ride(
    model: FlatModel,
    start: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    noise: float,
    rng: np.random.Generator,
) -> Report:
    """Set model.weights to `start`, plus normal noise of standard deviation `noise` on each parameter.

    Returns a `Report` that passes off the global model's loss and accuracy on the client's data as its
    training metrics. Other arguments as in `training.train`.
    """
    model.load(start)
    model.module.eval()
    logits = torch.cat([model.module(part) for part in images.split(BATCH)])
    loss = F.cross_entropy(logits, labels).item()
    if noise:
        drawn = noise * rng.standard_normal(model.parameters, dtype=np.float32)
        model.weights[: model.parameters] += torch.from_numpy(drawn).to(model.weights.device)
    return Report(len(images), loss, loss, (logits.argmax(1) == labels).double().mean().item())
