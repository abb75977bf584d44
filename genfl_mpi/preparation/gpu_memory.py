"""How much of a GPU's memory a run will take, counted from shapes: nothing is computed, and no GPU is needed."""

import numpy as np
import torch

from genfl_mpi.config.world import Incentive
from genfl_mpi.data import datasets
from genfl_mpi.federation import algorithms
from genfl_mpi.federation.algorithms.interface import Client
from genfl_mpi.federation.client_images import ClientImages
from genfl_mpi.generation import image_flops
from genfl_mpi.learning import models
from genfl_mpi.learning.memory import FLOAT, of_activations, of_weights
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.mpi import devices
from genfl_mpi.util.text import counted

CONTEXT = 500e6  # bytes of a process on a GPU before it does anything: driver, libraries, their workspaces; assumed, not measured
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "auto": 2}


def of_rank(config, arrays, serves=False):
    """Bytes on a rank's GPU at most, by name: of the server, or of another rank. config: as the user
    has it; arrays: of `load_and_divide`.

    The generator counts with its weights alone: what it needs for a batch of images is not in it.
    """
    about, training, together = (
        datasets.describe(config.data),
        config.training,
        config.training.clients_per_batch,
    )
    model = FlatModel(models.build(config.model, len(about.classes), about.shape, 0))
    found = of_weights(
        len(model.weights), model.parameters, training, *_of_algorithm(config, model), together
    )
    samples = int(np.diff(arrays["pointers"]).max()) + config.data.shared if config.trains_clients else 0
    pixels, images = int(np.prod(about.shape)), _most_images(config, len(about.classes))
    beside = images if config.sends else _most_filled(config, about, arrays) if config.fills else 0
    batch = min(training.batch_size, max(1, samples + beside))
    found["activations"] = together * of_activations(model.module, about.shape, batch, training.dtype)
    found["training images"] = arrays["train_images"].nbytes
    found["a client's images"] = together * (samples + beside) * pixels * (FLOAT + 1)
    if beside:  # before they are one array with the client's own; those that were sent stay
        found["a client's images"] += (together * samples + beside) * pixels * FLOAT
    if serves and config.augments:
        found["generated images"] = images * pixels * (FLOAT + 1)
        found["optimizer"] += FLOAT * model.parameters * bool(config.augmented.momentum)
        batch = min(config.augmented.batch_size, images)
        found["activations"] = max(
            found["activations"], of_activations(model.module, about.shape, batch, config.augmented.dtype)
        )
    if serves and config.generates and config.generation.device != "cpu":
        found["generator's weights"] = (
            BYTES[config.generation.dtype] * image_flops.of_configured(config.generation).weights
        )
    return found | {"context": int(CONTEXT)}


def _of_algorithm(config, model):
    """(vectors like the parameters that a step needs besides gradients and velocity, values of the broadcast arrays, values of the sums
    besides the weights') of the configured algorithm, found out on shapes alone."""
    algorithm = algorithms.find(config)
    declared = {
        kind: algorithm.declared(kind, model.parameters, config) for kind in ("broadcast", "sum", "client")
    }
    arrays, own = (
        {name: torch.empty(array.shape, device="meta") for name, array in declared[kind].items()}
        for kind in ("broadcast", "client")
    )
    client = Client(0, 1, 1, config.training, model.parameters)
    stages = algorithm.stages(client, torch.empty(len(model.weights), device="meta"), arrays, own, config)
    of_step = max(bool(stage.prox) + (stage.correction is not None) for stage in stages)
    return of_step, *(
        sum(int(np.prod(array.shape)) for array in declared[kind].values()) for kind in ("broadcast", "sum")
    )


def _most_images(config, classes):
    """How many images the server has in the end, at most."""
    if config.source == "pool":
        return config.data.public_pool
    images = min(config.generation.cap, config.generation.per_round * config.rounds)
    return images * classes if config.generation.count == "class" else images


def _most_filled(config, about, arrays):
    """How many images a client makes for itself, at most: at any price its whole gap."""
    unpriced = config.model_copy(update={"incentive": Incentive()})
    return int(ClientImages(unpriced, about, arrays).demand()[0].max())


def of_node(rank, server, ranks, gpus):
    """Bytes on each of so many GPUs, a list, of a node with so many ranks, of which the first is the server; rank, server: bytes
    of a rank, and of the server."""
    names = tuple(map(str, range(gpus)))
    places = [
        devices.Place(number, "", frozenset(), gpus=names, usable=gpus, serves=number == 0)
        for number in range(ranks)
    ]
    total = [0] * gpus
    for place, gpu in zip(places, devices.gpus_of(places)):
        total[gpu] += server if place.serves else rank
    return total


def lines(config, arrays, ranks, gpus):
    """What `plan` says of it, for a node of so many ranks and GPUs."""
    rank, server = of_rank(config, arrays), of_rank(config, arrays, serves=True)
    total = of_node(sum(rank.values()), sum(server.values()), ranks, gpus)
    yield (
        f"GPU       {sum(rank.values()) / 1e6:,.0f} MB a rank, {sum(server.values()) / 1e6:,.0f} MB rank 0; at most "
        f"{max(total) / 1e6:,.0f} MB on one of {counted(gpus, 'GPU')}"
    )
    parts = ", ".join(f"{name} {size / 1e6:,.3g}" for name, size in server.items() if size)
    yield f"{'':10}of rank 0's MB: {parts}"
