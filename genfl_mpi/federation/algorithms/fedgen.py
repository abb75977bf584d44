"""FedGen (Zhu et al. 2021, algorithm 1): the server trains a generator of features, which the clients use.

After each round the server trains G(noise, y) -> z, features that the output layer h_k of each client's model
k classifies as y:

    min_G  E_y [ sum_k a_k^y CE(h_k(G(noise, y)), y) ] + diversity,     a_k^y = n_ky / sum_k n_ky

From the second round on a client minimises, with b = algorithm.generated_weight 0.98^round, y' drawn at
random and y the labels of its batch,

    CE(x) + b CE(h(G(noise, y')), y') + b KL(h(G(noise, y)) || h(x)),   the first argument of KL fixed

The server uses Adam, with weight decay 0.01, which begins anew every round; n_ky are the label counts that
the clients shared. With generated_weight=0 it is FedAvg.

The generator is broadcast, 4 bytes a weight. Each of the server's steps sends features and their gradients:
about 4 (d + C) bytes an input to every rank, 8 d from every rank, for d features. (On real networks the
clients upload their models anyway, and this costs nothing.)
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.data import datasets
from genfl_mpi.federation.algorithms.interface import Algorithm, Array, Stage
from genfl_mpi.learning import heads, models
from genfl_mpi.learning.conditional_generators import NOISE, FeatureGenerator, diversity_loss
from genfl_mpi.learning.device_streams import seeded
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Client, Tensors, Weights
    from genfl_mpi.federation.refinements.tools import Tools

DECAY = 0.98  # of the clients' weight of generated features, per round
WEIGHT_DECAY = 0.01


def width(config: Config) -> int:
    """Return the number of features that the network's output layer reads. Raises UserError."""
    about = datasets.describe(config.data)
    return models.check_head(config.model, len(about.classes), about.shape, "algorithm.name=fedgen")


def asks(config: Config) -> tuple[int, ...] | None:
    """Return the shape of what the generator makes for one label: the features of the output layer."""
    return (width(config),) if config.algorithm.generated_weight else None


def check(config: Config) -> None:
    """Raise UserError if the network has no output layer whose inputs are the features."""
    width(config)


def make_generator(config: Config, device: torch.device) -> FlatModel:
    """Return the generator with its initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.integer(config.seed, "data-free generator"))
        classes = len(datasets.describe(config.data).classes)
        return FlatModel(FeatureGenerator(classes, width(config)), device)


def declare(parameters: int, config: Config) -> dict[str, Array]:
    """Declare the generator, at the server and at the clients, and its weight in their loss."""
    if not config.algorithm.generated_weight:
        return {}
    size = len(make_generator(config, torch.device("cpu")).weights)
    return {
        "generator": Array((size,), "broadcast"),
        "weight": Array((1,), "broadcast"),
        "trained_generator": Array((size,), "server"),
        "round": Array((1,), "server"),
    }


def broadcast(state: Tensors, config: Config) -> Tensors:
    """Send the generator and its weight."""
    if not state:
        return {}
    weight = config.algorithm.generated_weight * DECAY ** state["round"]
    return {"generator": state["trained_generator"], "weight": weight}


def stages(client: Client, omega: Weights, arrays: Tensors, own: Tensors, config: Config) -> list[Stage]:
    """Train once, on the client's samples and on generated features."""
    if not config.algorithm.generated_weight:
        return [Stage(client.settings.epochs)]

    @cache
    def generator(device: torch.device) -> FlatModel:
        made = make_generator(config, device)
        made.load(arrays["generator"])
        made.module.eval().requires_grad_(False)
        return made

    def loss(
        model: FlatModel, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head, make = heads.head_of(model.module), generator(images.device).module
        logits = model.module(images)
        other = torch.randint(head.out_features, labels.shape, device=labels.device)
        drawn = torch.randn(2, len(labels), NOISE, device=images.device)
        known = F.cross_entropy(head(make(drawn[0], other)).float(), other)
        with torch.no_grad():
            target = head(make(drawn[1], labels)).float().softmax(1)
        near = F.kl_div(logits.float().log_softmax(1), target, reduction="batchmean")
        return F.cross_entropy(logits.float(), labels) + arrays["weight"][0] * (known + near), logits

    return [Stage(client.settings.epochs, loss=loss)]


def refine(state: Tensors, omega: Weights, tools: Tools, config: Config) -> Weights:
    """Train the generator on the output layers of the clients' models. omega is left as it is."""
    settings, held = config.algorithm, tools.teachers.labels
    if not settings.generated_weight or not held.any():
        return omega
    device, rng = tools.model.weights.device, streams.generator(config.seed, "data-free", tools.round)
    generator = make_generator(config, device)
    if state:
        generator.load(state["trained_generator"].float())
    weights = held / np.maximum(1, held.sum(0))
    present = torch.from_numpy(np.flatnonzero(held.sum(0))).to(device)
    optimizer = torch.optim.Adam(
        generator.module.train().parameters(), settings.generator_lr, weight_decay=WEIGHT_DECAY
    )
    with seeded(int(rng.integers(2**63)), device):
        for _ in range(settings.server_steps):
            labels = present[torch.randint(len(present), (settings.server_batch,), device=device)]
            noise = torch.randn(len(labels), NOISE, device=device)
            made = generator.module(noise, labels)
            optimizer.zero_grad()
            (tools.teachers.loss(made, labels, weights) + diversity_loss(noise, made)).backward()
            optimizer.step()
    generator.gather()
    state["trained_generator"] = generator.weights.double().cpu()
    state["round"] = torch.tensor([tools.round + 1.0], dtype=torch.float64)
    return omega


FEDGEN = Algorithm(
    "fedgen",
    declare=declare,
    check=check,
    broadcast=broadcast,
    stages=stages,
    refine=refine,
    asks=asks,
    can_batch=False,
    corrects_gradients=True,
    summary="Train the clients on features from a generator that the server trains (Zhu et al. 2021).",
)
