"""What a client returns that does not train (Fraboni et al. 2021: plain and disguised free-riders)."""

import torch
import torch.nn.functional as F

from genfl_mpi.learning.training import Report

BATCH = 256  # samples that are looked at together


@torch.no_grad()
def free_ride(model, start, images, labels, noise, rng):
    """Set model.weights to the weights `start`, with normal noise of deviation `noise` on each parameter. Returns the `Report` of
    a client that says of its training what the global model does on its data. Arguments as of `training.train`."""
    model.load(start)
    model.module.eval()
    logits = torch.cat([model.module(part) for part in images.split(BATCH)])
    loss = F.cross_entropy(logits, labels).item()
    if noise:
        drawn = noise * rng.standard_normal(model.parameters, dtype="float32")
        model.weights[: model.parameters] += torch.from_numpy(drawn).to(model.weights.device)
    return Report(len(images), loss, loss, (logits.argmax(1) == labels).double().mean().item())
