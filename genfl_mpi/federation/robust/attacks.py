"""Attacks: on a client's training data, on its model, and on the cohort's models together.

    label_flip      y -> C - 1 - y in the attackers' samples
    backdoor        trigger and target label in part of their samples; omega^t + boost Delta_n is sent
    sign_flip       omega^t - scale Delta_n
    gaussian        omega^t + sigma N(0, 1)
    alie            mu - z s, with mean mu and standard deviation s of the others (Baruch et al. 2019)
    inner_product   omega^t - scale mean of the others' Delta_n (Xie et al. 2019)

The last two know the models of all honest members of the cohort, and are computed where these meet, on
slices. BatchNorm statistics are sent as they were trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.learning.evaluation import evaluate
from genfl_mpi.learning.training import normalise
from genfl_mpi.mpi import collectives
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from genfl_mpi.config.sections.adversity import Attack
    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.transforms.chain import Sender, Transform
    from genfl_mpi.learning.weights import FlatModel
    from genfl_mpi.mpi.collectives import MPI

WHITE = 255  # of a pixel


def check(config: Config, about: Description) -> None:
    """Raise UserError if a backdoor does not fit the data set."""
    attack, classes = config.attack, len(about.classes)
    if attack.share == 0 or attack.kind != "backdoor":
        return
    if len(about.shape) != 3:
        raise UserError(
            f"attack.kind=backdoor marks images, which {config.data.name} has not; choose another kind"
        )
    side = min(about.shape[1:])
    if attack.target >= classes:
        raise UserError(f"attack.target={attack.target} must be less than the number of classes, {classes}")
    if attack.trigger > side:
        raise UserError(f"attack.trigger={attack.trigger} must be at most the images' side, {side}")


def poison(
    images: torch.Tensor, labels: torch.Tensor, client: int, config: Config, about: Description
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training data of an attacking client.

    images: normalised float32 (n, C, H, W), which may be overwritten; labels: int64 (n,). The poisoned
    samples of a backdoor are drawn once for each client.
    """
    attack = config.attack
    if attack.kind == "label_flip":
        return images, len(about.classes) - 1 - labels
    if attack.kind != "backdoor":
        return images, labels
    drawn = streams.generator(config.seed, "poison", client).permutation(len(labels))
    chosen = torch.from_numpy(np.sort(drawn[: round(attack.poisoned * len(labels))])).to(labels.device)
    white = torch.full((1, about.shape[0], 1, 1), WHITE, dtype=torch.uint8)
    marked = images[chosen]
    _corner(marked, attack)[...] = normalise(white, about.mean, about.std, images.device)
    images[chosen] = marked
    return images, labels.index_fill(0, chosen, attack.target)


def find_transform(config: Config, attackers: np.ndarray) -> list[tuple[str, Transform]]:
    """Return the transform by which attackers change their models, with its name; an empty list without one.

    attackers: bool (clients,).
    """
    attack = config.attack
    if attack.share == 0 or attack.kind not in ("sign_flip", "gaussian", "backdoor"):
        return []

    def change(trained: torch.Tensor, omega: torch.Tensor, client: Sender) -> torch.Tensor:
        if not attackers[client.id]:
            return trained
        if attack.kind == "gaussian":
            noise = client.rng.standard_normal(len(trained), dtype=np.float32)
            return omega + attack.sigma * torch.from_numpy(noise).to(omega.device)
        factor = -attack.scale if attack.kind == "sign_flip" else attack.boost
        return trained if factor == 1 else omega + factor * (trained - omega)

    return [(f"attack.kind={attack.kind}", change)]


def craft(honest: np.ndarray, attack: Attack) -> np.ndarray:
    """Return what all attackers send as update, float64 (n,). honest: the other members' updates, (K, n)."""
    if attack.kind == "alie":
        return honest.mean(0) - attack.z * honest.std(0)
    return -attack.scale * honest.mean(0)


def measure_success(
    comm: MPI.Comm,
    model: FlatModel,
    omega: torch.Tensor,
    data: Mapping[str, np.ndarray],
    config: Config,
    about: Description,
) -> float:
    """Return the share of test images of other classes that the trigger turns into the target. Collective.

    model: the rank's `FlatModel`, which is overwritten; omega: float32 (size,).
    """
    attack, size, classes = config.attack, config.evaluation.batch_size, len(about.classes)
    others = np.flatnonzero(data["test_labels"] != attack.target)

    def chunks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(comm.rank * size, len(others), comm.size * size):
            pixels = torch.from_numpy(data["test_images"][others[start : start + size]])
            _corner(pixels, attack)[...] = WHITE
            yield (
                normalise(pixels, about.mean, about.std, model.weights.device),
                torch.full((len(pixels),), attack.target, device=model.weights.device),
            )

    model.load(omega)
    totals = evaluate(model, chunks(), classes, -(-len(others) // size), True)  # its loss is not used
    collectives.sum_everywhere(comm, totals)
    return totals[attack.target] / len(others) if len(others) else np.nan


def _corner(images: torch.Tensor, attack: Attack) -> torch.Tensor:
    """View the trigger's pixels of images (n, C, H, W)."""
    return images[:, :, -attack.trigger :, -attack.trigger :]
