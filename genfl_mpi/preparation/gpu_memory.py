"""Predict the GPU memory of a run from shapes alone. Nothing is computed, and no GPU is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genfl_mpi.config.world import Incentive
from genfl_mpi.data import datasets
from genfl_mpi.federation import algorithms
from genfl_mpi.federation.algorithms.interface import Client
from genfl_mpi.federation.client_images import ClientImages
from genfl_mpi.generation import image_flops
from genfl_mpi.learning import models
from genfl_mpi.learning.memory import FLOAT, activation_bytes, weight_bytes
from genfl_mpi.learning.steps import is_static
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.mpi import devices
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genfl_mpi.config.settings import Config

# Bytes that a process takes on a GPU before it computes: driver, libraries and their workspaces. Assumed, not
# measured.
CONTEXT_BYTES = 500e6
BYTES_PER_VALUE = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 2}


def rank_bytes(config: Config, arrays: dict[str, np.ndarray], serves: bool = False) -> dict[str, int]:
    """Return the peak bytes on a rank's GPU, by name, of rank 0 (`serves`) or of another rank.

    config: as the user set it; arrays: of `load_and_divide`. Of the generator only the weights count: the
    memory that it needs for a batch of images is not included.
    """
    about, training = datasets.describe(config.data), config.training
    together = training.clients_per_batch
    model = FlatModel(models.build(config.model, len(about.classes), about.shape, 0))
    vectors, broadcast, summed = _algorithm_memory(config, model)
    if config.time.driver == "tiers":  # a model and a sum for each cell, besides the cloud's model
        broadcast += config.cells * len(model.weights)
        summed += (config.cells - 1) * len(model.weights)
    found = weight_bytes(len(model.weights), model.parameters, training, vectors, broadcast, summed, together)
    if frozen := sum(one.numel() for one in model.module.parameters() if not one.requires_grad):
        found["frozen parameters"] = FLOAT * frozen
    samples = int(np.diff(arrays["pointers"]).max()) + config.data.shared if config.trains_clients else 0
    pixels, images = int(np.prod(about.shape)), _max_server_images(config, len(about.classes))
    extra = images if config.sends else _max_filled_images(config, about, arrays) if config.fills else 0
    batch = min(training.batch_size, max(1, samples + extra))
    found["activations"] = together * activation_bytes(model.module, about.shape, batch, training.dtype)
    is_graphed = is_static(model.module)
    graphs = (found["activations"] + FLOAT * model.parameters) * (is_graphed and together == 1)
    found["CUDA graphs"] = graphs  # a memory pool of their own, for one step
    found["data set's images"] = arrays["train_images"].nbytes + arrays["test_images"].nbytes
    found["a client's images"] = together * (samples + extra) * pixels * (FLOAT + 1)
    if extra:  # before concatenation with the client's samples; sent images stay on the GPU
        found["a client's images"] += (together * samples + extra) * pixels * FLOAT
    if serves and config.has_server_images:
        found["generated images"] = images * pixels * (FLOAT + 1)
        found["optimizer"] += FLOAT * model.parameters * bool(config.augmented.momentum)
        batch = min(config.augmented.batch_size, images)
        activations = activation_bytes(model.module, about.shape, batch, config.augmented.dtype)
        found["CUDA graphs"] += (activations + FLOAT * model.parameters) * is_graphed
        found["activations"] = max(found["activations"], activations)
    if serves and config.generates and config.generation.device != "cpu":
        weights = image_flops.count_configured(config.generation).weights
        found["generator's weights"] = BYTES_PER_VALUE[config.generation.dtype] * weights
    return found | {"context": int(CONTEXT_BYTES)}


def _algorithm_memory(config: Config, model: FlatModel) -> tuple[int, int, int]:
    """Return what the configured algorithm adds, found by running its hooks on shapes alone.

    Returns the number of vectors like the parameters that a step needs besides gradients and velocity, the
    values of the broadcast arrays, and the values of the sums besides the weights'.
    """
    algorithm = algorithms.find(config)
    declared = {
        kind: algorithm.arrays_of_kind(kind, model.parameters, config)
        for kind in ("broadcast", "sum", "client")
    }
    arrays, state = (
        {name: torch.empty(array.shape, device="meta") for name, array in declared[kind].items()}
        for kind in ("broadcast", "client")
    )
    client = Client(0, 1, 1, config.training, model.parameters)
    omega = torch.empty(len(model.weights), device="meta")
    stages = algorithm.stages(client, omega, arrays, state, config)
    vectors = max(bool(stage.prox) + (stage.correction is not None) for stage in stages)

    def values(kind: str) -> int:
        return sum(int(np.prod(array.shape)) for array in declared[kind].values())

    return vectors, values("broadcast"), values("sum")


def _max_server_images(config: Config, classes: int) -> int:
    """Return the maximum number of images that the server holds after the last round."""
    if config.source == "pool":
        return config.data.public_pool
    images = min(config.generation.cap, config.generation.per_round * config.rounds)
    return images * classes if config.generation.count == "class" else images


def _max_filled_images(config: Config, about: datasets.Description, arrays: dict[str, np.ndarray]) -> int:
    """Return the maximum number of images that a client generates for itself: its whole gap, at any price."""
    unpriced = config.model_copy(update={"incentive": Incentive.model_validate({})})
    return int(ClientImages(unpriced, about, arrays).demand()[0].max())


def node_bytes(rank: int, server: int, ranks: int, gpus: int, generator: int = 0) -> list[int]:
    """Return the bytes on each GPU of a node with `ranks` ranks and `gpus` GPUs, where the first rank serves.

    rank, server: bytes of a rank that does not serve, and of rank 0. generator: bytes of the generator on
    each other GPU, whose first rank shares the generation.
    """
    names = tuple(map(str, range(gpus)))
    places = [
        devices.Place(number, "", frozenset(), gpus=names, usable=gpus, serves=number == 0)
        for number in range(ranks)
    ]
    total = [0] * gpus
    for place, gpu in zip(places, devices.assign_gpus(places)):
        if gpu is not None:
            total[gpu] += generator * (not total[gpu] and not place.serves)
            total[gpu] += server if place.serves else rank
    return total


def describe(config: Config, arrays: dict[str, Any], ranks: int, gpus: int) -> Iterator[str]:
    """Yield the lines of `plan` on GPU memory, for a node with `ranks` ranks and `gpus` GPUs."""
    rank, server = rank_bytes(config, arrays), rank_bytes(config, arrays, serves=True)
    shared = server.get("generator's weights", 0) if config.generation.ranks != "server" else 0
    total = node_bytes(sum(rank.values()), sum(server.values()), ranks, gpus, shared)
    yield (
        f"GPU       {sum(rank.values()) / 1e6:,.0f} MB per rank, {sum(server.values()) / 1e6:,.0f} MB "
        f"rank 0; at most {max(total) / 1e6:,.0f} MB on one of {counted(gpus, 'GPU')}"
    )
    parts = ", ".join(f"{name} {size / 1e6:,.3g}" for name, size in server.items() if size)
    yield f"{'':10}rank 0, MB: {parts}"
