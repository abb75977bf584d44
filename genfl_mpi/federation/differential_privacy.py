"""Client-level differential privacy: bounded updates, noise on their sum, and what the rounds have spent.

    omega_fl = omega^t + (sum_n clip(Delta_n) + N(0, (sigma c)^2)) / m        c: clip, m: the planned cohort

Sources: McMahan et al. 2018; adaptive clips: Andrew et al. 2021; noise shared among clients: Kairouz et al.
2021. Clips and noise act on the integers of the exact sum, so that rounding cannot exceed the clip.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genfl_mpi.federation import algorithms
from genfl_mpi.federation.algorithms.interface import Algorithm, Array
from genfl_mpi.federation.messages import MODEL
from genfl_mpi.learning.weights import FRACTION_BITS
from genfl_mpi.privacy import accounting
from genfl_mpi.privacy.accounting import Release
from genfl_mpi.privacy.protocol import count_neighbours, default_threshold
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

WITHIN = "within clip"  # the sum over clients of 1/2 or -1/2 by whether their update is within the clip
SLACK = 2.0**-20  # share of the clip that is left for the rounding of float32 and of the sum's integers
MIN_NOISE_UNITS = 2.0**20  # smallest standard deviation of a client's noise share, in integers of the sum
RELEASES, CLIP = "privacy.releases", "privacy.clip"  # names in the checkpoint
# Columns of /rounds without differential privacy.
NOT_PRIVATE: dict[str, Any] = dict.fromkeys(
    ("epsilon", "epsilon_with_labels", "clip", "noise_to_update"), np.nan
)


def check(config: Config) -> None:
    """Raise UserError if the algorithm's messages have no bounded sensitivity, or a package is missing."""
    algorithm = algorithms.find(config)
    if (
        algorithm.arrays_of_kind("sum", 1, config)
        or algorithm.coefficients is not Algorithm.coefficients
        or algorithm.average is not Algorithm.average
    ):
        raise UserError(
            f"privacy.clip bounds the clients' updates, and algorithm.name={config.algorithm.name} sums more "
            "than these; choose fedavg, fedprox, fedavgm, fedadam or fedyogi"
        )
    accounting.check_installed()


def sums(config: Config) -> dict[str, Array]:
    """Return the arrays that are summed besides the updates."""
    return {WITHIN: Array((1,), "sum")} if config.privacy.clip_quantile is not None else {}


def noise_multiplier(config: Config) -> float:
    """Return the configured noise multiplier, or the one that privacy.epsilon needs. Raises UserError."""
    privacy = config.privacy
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    assert privacy.epsilon is not None and privacy.delta is not None and privacy.rounds is not None
    release = Release(
        config.selection.policy == "poisson", config.clients, config.cohort, 0.0, privacy.rounds
    )
    return accounting.noise_multiplier(release, privacy.epsilon, privacy.delta)


def clip(change: torch.Tensor, bound: float) -> tuple[torch.Tensor, bool]:
    """Scale an update down to the norm `bound`, if it is longer; return it and whether it was within.

    change: float32 (size,). The result stays within the bound after rounding to the integers of the sum.
    """
    norm = float(torch.linalg.vector_norm(change, dtype=torch.float64))
    target = bound * (1 - SLACK)
    return (change, True) if norm <= target else ((change.double() * (target / norm)).float(), False)


def check_rounding(config: Config, size: int) -> None:
    """Raise UserError if rounding to the integers of the sum could exceed the clip.

    size: number of weights.
    """
    bound = config.privacy.clip
    assert bound is not None
    # Half a unit per weight, over the coefficient 1 / cohort of an update.
    if math.sqrt(size) / 2 * 2.0**-FRACTION_BITS * config.cohort > SLACK / 2 * bound:
        raise UserError(
            f"privacy.clip={bound:g} is too small for {size} weights and a cohort of {config.cohort}: "
            f"rounding to multiples of 2^-{FRACTION_BITS} could exceed it; set a larger clip"
        )


def check_noise(config: Config, multiplier: float) -> None:
    """Raise UserError if a noise multiplier cannot be divided among clients, or with an adaptive clip."""
    update_multiplier(config, multiplier)
    if config.privacy.noise == "distributed":
        units = _share_units(config, float(config.privacy.clip or 0.0), multiplier)
        if units < MIN_NOISE_UNITS:
            raise UserError(
                f"privacy.noise=distributed gives each client noise of {units:.3g} units of the sum, too "
                "little for a discrete Gaussian; increase privacy.noise_multiplier or privacy.clip"
            )


def noise_share(
    config: Config, round: int, client: int, bound: float, multiplier: float, size: int
) -> np.ndarray:
    """Draw a client's share of the noise, in integers of the sum: int64 (size,).

    The shares of `threshold` survivors add up to the whole noise; more survivors add more. A Gaussian that is
    rounded to integers has, relative to the discrete Gaussian, probabilities that differ by at most
    (1 + (k / s)^2) / (24 s^2) at k, where s, its standard deviation, is at least MIN_NOISE_UNITS.
    """
    rng = streams.generator(config.seed, "noise share", round, client)
    return np.rint(_share_units(config, bound, multiplier) * rng.standard_normal(size)).astype(np.int64)


def _share_units(config: Config, bound: float, multiplier: float) -> float:
    """Return the standard deviation of a client's noise share, in integers of the sum."""
    survivors = config.privacy.threshold or default_threshold(
        1 + count_neighbours(config.cohort, config.privacy.neighbours)
    )
    return multiplier * bound / config.cohort / math.sqrt(survivors) * 2.0**FRACTION_BITS


class PrivateSum:
    """Add noise to the sum of the clients' updates, adapt the clip, and account for the rounds. On rank 0.

    multiplier: of `noise_multiplier`; shared_epsilon: of the labels that each client has shared.

    clip: bound of this round's updates. releases: of the finished rounds. noise_ratio: norm of the last
    round's noise over that of its sum.
    """

    def __init__(self, config: Config, multiplier: float, shared_epsilon: float) -> None:
        self.config, self.multiplier, self.shared_epsilon = config, multiplier, shared_epsilon
        self.clip = float(config.privacy.clip or 0.0)
        self.next_clip, self.noise_ratio = self.clip, np.nan
        self.releases: list[Release] = []

    def average(
        self, round: int, omega: torch.Tensor, received: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        """Return omega^t plus the noisy mean update: float64 (size,).

        omega: float32 (size,). received: the sums, or None in an empty or void round. Central noise is
        released then, too; distributed noise is lost with its shares.
        """
        privacy, size = self.config.privacy, len(omega)
        rng = streams.generator(self.config.seed, "privacy noise", round)
        total = torch.zeros(size, dtype=torch.float64) if received is None else received[MODEL]
        scale = update_multiplier(self.config, self.multiplier) * self.clip / self.config.cohort
        length = float(torch.linalg.vector_norm(total))
        noise = torch.from_numpy(scale * rng.standard_normal(size)) if privacy.noise == "central" else 0.0
        expected = scale * math.sqrt(size)
        self.noise_ratio = expected / length if length else np.nan
        if privacy.clip_quantile is not None:
            self._adapt(received, rng)
        return omega.double() + total + noise

    def _adapt(self, received: dict[str, torch.Tensor] | None, rng: np.random.Generator) -> None:
        """Move the next round's clip towards the quantile, from a noisy count of updates within the clip."""
        privacy = self.config.privacy
        assert privacy.clip_quantile is not None
        within = 0.0 if received is None else received[WITHIN].item()
        within += count_noise(self.config) * rng.standard_normal() / self.config.cohort + 0.5
        self.next_clip = self.clip * math.exp(-privacy.clip_lr * (within - privacy.clip_quantile))

    def commit(self) -> None:
        """Account for a complete round."""
        config = self.config
        one = Release(config.selection.policy == "poisson", config.clients, config.cohort, self.multiplier, 1)
        self.releases = accounting.add_round(self.releases, one)
        self.clip = self.next_clip

    def columns(self) -> dict[str, float]:
        """Return the columns of /rounds for the round that `commit` will account for next."""
        config = self.config
        one = Release(config.selection.policy == "poisson", config.clients, config.cohort, self.multiplier, 1)
        assert config.privacy.delta is not None
        spent = accounting.epsilon(tuple(accounting.add_round(self.releases, one)), config.privacy.delta)
        return {
            "epsilon": spent,
            "epsilon_with_labels": spent + self.shared_epsilon,
            "clip": self.clip,
            "noise_to_update": self.noise_ratio,
        }

    def state(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint keeps."""
        rows = np.array(self.releases, dtype=np.float64).reshape(-1, len(Release._fields))
        return {RELEASES: rows, CLIP: np.array([self.clip])}

    def restore(self, arrays: dict[str, np.ndarray], rounds: int) -> None:
        """Restore `state`. rounds: finished ones; those without an account were released without noise."""
        self.releases = [
            Release(bool(poisson), int(clients), int(cohort), float(noise), int(count))
            for poisson, clients, cohort, noise, count in arrays.get(RELEASES, np.zeros((0, 5))).tolist()
        ]
        before = rounds - sum(one.rounds for one in self.releases)
        if before:
            config = self.config
            plain = Release(config.selection.policy == "poisson", config.clients, config.cohort, 0.0, before)
            self.releases.append(plain)
        if self.config.privacy.clip_quantile is not None and CLIP in arrays:
            self.clip = self.next_clip = float(arrays[CLIP][0])


def count_noise(config: Config) -> float:
    """Return the standard deviation of the noise on the count of updates within the clip."""
    return config.privacy.count_noise or config.cohort / 20


def update_multiplier(config: Config, multiplier: float) -> float:
    """Return the noise multiplier of the updates, of which an adaptive clip's count has used a part.

    (z^-2 - (2 sigma_b)^-2)^(-1/2), z: of the whole; sigma_b: of the count, whose summands are 1/2 or -1/2.
    """
    if config.privacy.clip_quantile is None or not multiplier:
        return multiplier
    left = multiplier**-2 - (2 * count_noise(config)) ** -2
    if left <= 0:
        raise UserError(
            f"privacy.count_noise ({count_noise(config):g}) must be more than half of the noise multiplier "
            f"({multiplier:g}); increase it"
        )
    return left**-0.5


def labels_epsilon(config: Config, samples: np.ndarray, sharing: np.ndarray) -> float:
    """Return the epsilon of the labels that clients share beforehand, for a whole client.

    samples: int (clients,); sharing: bool (clients,). Local privacy protects one sample; a client with n
    samples has n times its epsilon.
    """
    if not sharing.any():
        return 0.0
    each = config.label_sharing.epsilon
    return np.inf if each is None else each * float(samples[sharing].max())
