"""Bytes that training takes on a device, counted from shapes alone."""

import copy

import torch
import torch.nn.functional as F

FLOAT, UNIT = 4, 8  # bytes of a weight and of its part in the exact sum


def of_activations(module, shape, batch, dtype="float32"):
    """Bytes that a forward pass on `batch` samples keeps for the backward pass, with the batch itself, less the weights.

    module: maps float32 (n, C, H, W) to logits; shape: (C, H, W); dtype: "float32" or "bfloat16", as config.training has it, of
    which the latter keeps a copy of the weights, too.
    """
    there = copy.deepcopy(module).to("meta", getattr(torch, dtype)).train()
    # Only torch's private number of a storage tells those on the meta device apart.
    weights = {parameter.untyped_storage()._cdata for parameter in there.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other can have its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = there(torch.empty(batch, *shape, dtype=getattr(torch, dtype), device="meta"))
        F.cross_entropy(logits.float(), torch.empty(batch, dtype=torch.int64, device="meta"))
    copies = 0 if dtype == "float32" else sum(parameter.nbytes for parameter in there.parameters())
    return sum(storage.nbytes() for storage in kept.values()) + copies


def of_weights(size, parameters, settings, of_step=0, arrays=0, sums=0, clients_per_batch=1):
    """Bytes of what is as long as the weights, by name. size: weights; parameters: of them; settings: config.training; of_step:
    vectors that a step needs besides gradients and velocity (FedProx, SCAFFOLD); arrays, sums: values of an algorithm's broadcast
    arrays and sums; clients_per_batch: clients trained as one."""
    models = 2 + (
        clients_per_batch if clients_per_batch > 1 else 0
    )  # one to compute with, omega^t, and those that are trained as one batch
    velocities = max(1, clients_per_batch) * bool(settings.momentum)
    return {
        "weights": FLOAT * models * size,
        "algorithm's arrays": FLOAT * arrays,
        "gradients": FLOAT * clients_per_batch * parameters,
        "optimizer": FLOAT * (velocities + of_step) * parameters,
        "exact sum": UNIT * (size + sums),
    }
