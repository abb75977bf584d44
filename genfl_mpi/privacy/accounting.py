"""Privacy accounting by dp-accounting: the epsilon of rounds, and the noise that an epsilon needs.

Poisson cohorts are accounted under add-or-remove-one with privacy loss distributions (PLD). Cohorts of fixed
size are samples without replacement under replace-one with Renyi divergences (RDP, Wang et al. 2019): there a
client's replacement moves the sum by up to twice the clip, so noise of sigma times the clip is accounted as
sigma / 2.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from genfl_mpi.util.errors import UserError

GRID = 1e-4  # of privacy loss in a PLD
TOLERANCE = 1e-4  # of a calibrated noise multiplier


class Release(NamedTuple):
    """How a number of rounds released noisy sums.

    poisson: whether each client takes part with probability cohort / clients; otherwise exactly `cohort` of
    `clients` do. noise_multiplier: of the noise, over the clip; 0 without noise. rounds: how many.
    """

    poisson: bool
    clients: int
    cohort: int
    noise_multiplier: float
    rounds: int


def check_installed() -> None:
    """Raise UserError if the package `dp_accounting` is missing."""
    if importlib.util.find_spec("dp_accounting") is None:
        raise UserError("privacy.clip needs the package dp-accounting; pip install 'genfl_mpi[privacy]'")


@cache
def epsilon(releases: tuple[Release, ...], delta: float) -> float:
    """Return the epsilon of consecutive releases at a delta; infinite if one of them has no noise."""
    if any(one.noise_multiplier == 0 for one in releases if one.rounds):
        return np.inf
    if not any(one.rounds for one in releases):
        return 0.0
    done = [one for one in releases if one.rounds]
    if len({one.poisson for one in done}) > 1:
        raise UserError(
            "selection.policy: rounds with Poisson cohorts and rounds with cohorts of fixed size have no "
            "common epsilon; keep the policy in a fork"
        )
    if done[0].poisson:
        first, *others = (_poisson_losses(one._replace(rounds=1)).self_compose(one.rounds) for one in done)
        for other in others:
            first = first.compose(other)
        return float(first.get_epsilon_for_delta(delta))
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    for one in done:
        gaussian = GaussianDpEvent(one.noise_multiplier / 2)
        event = SampledWithoutReplacementDpEvent(one.clients, one.cohort, gaussian)
        accountant.compose(event, one.rounds)
    return float(accountant.get_epsilon(delta))


@cache
def _poisson_losses(release: Release) -> Any:
    """Return the privacy loss distribution of one round with a Poisson cohort."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        release.noise_multiplier,
        sampling_prob=release.cohort / release.clients,
        value_discretization_interval=GRID,
    )


def noise_multiplier(release: Release, target: float, delta: float) -> float:
    """Return the smallest noise multiplier, up to TOLERANCE, with which the rounds reach at most epsilon.

    release: whose noise multiplier is not used; target: epsilon. Raises UserError if no noise suffices.
    """
    low, high = 0.0, 1.0
    while epsilon((release._replace(noise_multiplier=high),), delta) > target:
        low, high = high, 2 * high
        if high > 2**20:
            raise UserError(
                f"privacy.epsilon={target:g} with privacy.delta={delta:g} cannot be reached by noise; "
                "increase one of them"
            )
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        if epsilon((release._replace(noise_multiplier=middle),), delta) > target:
            low = middle
        else:
            high = middle
    return high


def add_round(releases: Sequence[Release], last: Release) -> list[Release]:
    """Append one round to releases, joined with the previous ones of the same kind. last: of one round."""
    if releases and releases[-1]._replace(rounds=1) == last:
        return [*releases[:-1], last._replace(rounds=releases[-1].rounds + 1)]
    return [*releases, last]
