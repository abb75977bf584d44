"""DENSE and FedFTG: the server trains an image generator on the clients' models, and distils them with it.

Every round, after Eq. (1), from the weights omega, algorithm.server_steps times:

    generator   min_G  classification + diversity - disagreement(ensemble, student) on G(noise, y)
    student     min    KL(softmax(ensemble / T) || softmax(student / T)) on new G(noise, y), 5 steps

                    DENSE (Zhang et al. 2022, NeurIPS)      FedFTG (Zhang et al. 2022, CVPR)
    ensemble        mean_k z_k                              sum_k a_k^y z_k,  a_k^y = n_ky / sum_k n_ky
    classification  CE(ensemble, y)                         sum_k a_k^y CE(z_k, y)
    disagreement    KL, where both predict other labels     KL
    y               all labels alike                        by sum_k n_ky
    diversity       none                                    as in FedGen
    T               20                                      1

n_ky: the label counts that the clients shared. The generator uses Adam, begins where it ended in the last
round, and is kept by the server; the student uses SGD with momentum 0.9. DENSE is made for one round; its
term for BatchNorm statistics is not implemented, so that networks with BatchNorm are refused. With
server_steps=0 both are FedAvg.

Nothing is sent besides the weights to and from the clients: their models reach the server anyway. In the
simulation each of the 8 questions of a step carries images, 4 bytes a pixel and channel to every rank, and
logits or gradients back, 8 bytes a class, or a pixel and channel.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call

from genfl_mpi.data import datasets
from genfl_mpi.federation.algorithms.interface import Algorithm, Array
from genfl_mpi.learning import models
from genfl_mpi.learning.conditional_generators import NOISE, ImageGenerator, diversity_loss
from genfl_mpi.learning.device_streams import seeded
from genfl_mpi.learning.steps import has_batch_statistics
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Tensors, Weights
    from genfl_mpi.federation.refinements.tools import Tools

STUDENT_STEPS = 5  # for each of the generator
DENSE_TEMPERATURE = 20.0


def asks(config: Config) -> tuple[int, ...] | None:
    """Return the shape of what the generator makes for one label: an image."""
    return datasets.describe(config.data).shape if config.algorithm.server_steps else None


def make_generator(config: Config, device: torch.device) -> FlatModel:
    """Return the generator with its initial weights."""
    about = datasets.describe(config.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.integer(config.seed, "data-free generator"))
        module = ImageGenerator(len(about.classes), about.shape, about.mean, about.std)
    return FlatModel(module, device)


def declare(parameters: int, config: Config) -> dict[str, Array]:
    """Declare the generator."""
    if not config.algorithm.server_steps:
        return {}
    return {"generator": Array((len(make_generator(config, torch.device("cpu")).weights),), "server")}


def check(name: str, config: Config) -> None:
    """Raise UserError for networks with BatchNorm, and for samples that are no images."""
    about = datasets.describe(config.data)
    if len(about.shape) != 3:
        raise UserError(f"algorithm.name={name} makes images, and data.name={config.data.name} has none")
    if has_batch_statistics(models.build(config.model, len(about.classes), about.shape, 0)):
        raise UserError(
            f"algorithm.name={name} supports no network with BatchNorm; set model.norm=group or another "
            "model.name"
        )


def refine(is_dense: bool, state: Tensors, omega: Weights, tools: Tools, config: Config) -> Weights:
    """Train the generator and the student in turn. Returns the student, float64 (size,)."""
    settings, teachers, held = config.algorithm, tools.teachers, tools.teachers.labels
    if not settings.server_steps or not teachers.count or not (is_dense or held.any()):
        return omega
    device, rng = tools.model.weights.device, streams.generator(config.seed, "data-free", tools.round)
    generator, student = make_generator(config, device), omega.float().to(device, copy=True)
    if state:
        generator.load(state["generator"].float())
    weights = (
        np.repeat(teachers.share[:, None], held.shape[1], 1)
        if is_dense
        else held / np.maximum(1, held.sum(0))
    )
    prior = torch.from_numpy(np.ones(held.shape[1]) if is_dense else held.sum(0).astype(float)).to(device)
    temperature = DENSE_TEMPERATURE if is_dense else 1.0
    optimizer = torch.optim.Adam(generator.module.train().parameters(), settings.generator_lr)
    network = _student_network(tools.model, student)
    student_optimizer = torch.optim.SGD([student], settings.student_lr, momentum=0.9)

    def make() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        labels = torch.multinomial(prior, settings.server_batch, replacement=True)
        noise = torch.randn(len(labels), NOISE, device=device)
        return noise, labels, generator.module(noise, labels)

    with seeded(int(rng.integers(2**63)), device):
        for _ in range(settings.server_steps):
            noise, labels, images = make()
            ensemble = teachers.logits(images, labels, weights)
            if is_dense:
                loss = F.cross_entropy(ensemble, labels)
            else:
                loss = teachers.loss(images, labels, weights) + diversity_loss(noise, images)
            loss = loss - _disagreement(ensemble, network(images), only_where_they_differ=is_dense)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for _ in range(STUDENT_STEPS):
                with torch.no_grad():
                    _, labels, images = make()
                    target = (teachers.logits(images, labels, weights) / temperature).softmax(1)
                student.requires_grad_(True)
                given = (network(images) / temperature).log_softmax(1)
                student_optimizer.zero_grad()
                F.kl_div(given, target, reduction="batchmean").backward()
                student_optimizer.step()
                student.requires_grad_(False)
    generator.gather()
    state["generator"] = generator.weights.double().cpu()
    return student.double().cpu()


def server_passes(is_dense: bool, config: Config, models: int) -> float:
    """Return the cost of a round in forward passes of a sample, without the generator's."""
    generator = models * (1 + 3 + 3 * (not is_dense)) + 3
    samples = config.algorithm.server_steps * config.algorithm.server_batch
    return float(samples * (generator + STUDENT_STEPS * (models + 3)))


def _student_network(model: FlatModel, weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network with these weights, float32 (size,), whatever the model holds."""

    def network(images: torch.Tensor) -> torch.Tensor:
        return functional_call(model.module.train(), model.named(weights), (images,))

    return network


def _disagreement(
    ensemble: torch.Tensor, student: torch.Tensor, only_where_they_differ: bool
) -> torch.Tensor:
    """Return the mean of KL(ensemble || student) over images, from their logits (n, classes)."""
    divergence = F.kl_div(student.log_softmax(1), ensemble.softmax(1), reduction="none").sum(1)
    if only_where_they_differ:
        divergence = divergence * (ensemble.argmax(1) != student.argmax(1))
    return divergence.mean()


def _algorithm(name: str, is_dense: bool, summary: str) -> Algorithm:
    return Algorithm(
        name,
        declare=declare,
        check=partial(check, name),
        refine=partial(refine, is_dense),
        asks=asks,
        server_passes=partial(server_passes, is_dense),
        summary=summary,
    )


DENSE = _algorithm(
    "dense", True, "Distil the clients' models with a data-free generator; for one round (Zhang et al. 2022)."
)
FEDFTG = _algorithm(
    "fedftg",
    False,
    "Distil the clients' models with a data-free generator of hard images (Zhang et al. 2022).",
)
