"""Bytes that training needs on a device, counted from shapes alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from genfl_mpi.config.sections.local_training import Training

FLOAT, UNIT = 4, 8  # bytes of a weight, and of its entry in the exact sum


def activation_bytes(module: nn.Module, shape: tuple[int, ...], batch: int, dtype: str = "float32") -> int:
    """Count the bytes that a forward pass keeps for the backward pass, batch included, weights excluded.

    module: maps float32 (n, C, H, W) to logits; shape: (C, H, W); batch: samples; dtype: "float32" or
    "bfloat16", as in config.training. In bfloat16 a copy of the weights counts, too.
    """
    copied = copy.deepcopy(module).to("meta", getattr(torch, dtype)).train()
    # Storages on the meta device have no address; only torch's private identifier distinguishes them.
    weights = {parameter.untyped_storage()._cdata for parameter in copied.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # the reference keeps its identifier from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = copied(torch.empty(batch, *shape, dtype=getattr(torch, dtype), device="meta"))
        F.cross_entropy(logits.float(), torch.empty(batch, dtype=torch.int64, device="meta"))
    copies = 0 if dtype == "float32" else sum(parameter.nbytes for parameter in copied.parameters())
    return sum(storage.nbytes() for storage in kept.values()) + copies


def weight_bytes(
    size: int,
    parameters: int,
    settings: Training,
    of_step: int = 0,
    arrays: int = 0,
    sums: int = 0,
    clients_per_batch: int = 1,
) -> dict[str, int]:
    """Count the bytes of all vectors as long as the weights, by name.

    size: number of weights; parameters: of parameters among them; settings: config.training; of_step: vectors
    that a step needs besides gradients and velocity (FedProx, SCAFFOLD); arrays, sums: values in an
    algorithm's broadcast arrays and sums; clients_per_batch: clients trained as one batch.
    """
    # The working model, omega^t, and the models of clients trained as one batch.
    models = 2 + (clients_per_batch if clients_per_batch > 1 else 0)
    velocities = max(1, clients_per_batch) * bool(settings.momentum)
    return {
        "weights": FLOAT * models * size,
        "algorithm's arrays": FLOAT * arrays,
        "gradients": FLOAT * clients_per_batch * parameters,
        "optimizer": FLOAT * (velocities + of_step) * parameters,
        "exact sum": UNIT * (size + sums),
    }
