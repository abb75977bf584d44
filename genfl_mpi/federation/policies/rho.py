"""The clients' weights in Eq. (1): (state) -> float array (cohort,), not negative, with sum 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation.policies import needs
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.federation.policies import Policy, ServerState


def size(state: ServerState) -> np.ndarray:
    """Weight by samples, as in the paper: rho_n = |D_n| / sum |D_m| over the cohort."""
    samples = state.samples[state.cohort].astype(np.float64)
    return samples / samples.sum()


def uniform(state: ServerState) -> np.ndarray:
    """Weight all clients of the cohort equally."""
    return np.full(len(state.cohort), 1 / len(state.cohort))


def quality(state: ServerState) -> np.ndarray:
    """Weight by label skew: rho_n ~ |D_n| (1 - EMD_n / 2)^gamma.

    EMD_n is that of the shared labels; a client that shared nothing gets the mean EMD of the cohort's clients
    that did. gamma: rho.gamma; 0 gives the paper's weights.
    """
    distance = earth_movers_distance(state.shared_labels)[state.cohort]
    known = distance[~np.isnan(distance)]
    distance = np.where(np.isnan(distance), known.mean() if len(known) else 0.0, distance)
    return _proportional(state, "gamma", lambda gamma: (1 - distance / 2) ** gamma)


@needs("models")
def loss(state: ServerState) -> np.ndarray:
    """Weight by loss: rho_n ~ |D_n| F_n^power, where F_n is the client's loss on the global model.

    power: rho.power. Above 0 it is q-FFL's fairness (Li et al. 2020); below 0 it favours clients that fit the
    global model; 0 gives the paper's weights.
    """
    return _proportional(
        state, "power", lambda power: np.maximum(state.reports["loss_first_epoch"], 1e-12) ** power
    )


@needs("models")
def similarity(state: ServerState) -> np.ndarray:
    """Weight by agreement with the cohort: rho_n ~ |D_n| e^f(theta_n).

    theta_n is the angle between the client's update and the cohort's mean update, and f(theta) = a (1 -
    e^(-e^(-a (theta - 1)))) a Gompertz function. Source: FedAdp (Wu and Wang 2021), without its smoothing
    over rounds. a: rho.alpha; 0 gives the paper's weights.
    """
    angle = np.arccos(np.clip(state.cosines(state.average(size(state))), -1, 1))
    return _proportional(
        state, "alpha", lambda alpha: np.exp(alpha * (1 - np.exp(-np.exp(-alpha * (angle - 1)))))
    )


@needs("models", "validation")
def leave_one_out(state: ServerState) -> np.ndarray:
    """Weight by the increase of the validation loss of the cohort's mean when the client is left out.

    Decreases count as 0. Returns the paper's weights if no client's absence increases the loss.
    """
    all_clients = _coalition_loss(state, np.ones(len(state.cohort), dtype=bool))
    others = ~np.eye(len(state.cohort), dtype=bool)
    return _normalised(state, [_coalition_loss(state, members) - all_clients for members in others])


@needs("models", "validation")
def shapley(state: ServerState) -> np.ndarray:
    """Weight by the client's Shapley value in lowering the validation loss (Ghorbani and Zou 2019).

    Estimated from rho.permutations random orders of joining. Negative values count as 0. Returns the paper's
    weights if no value is positive.
    """
    count, permutations = len(state.cohort), state.config.rho.permutations
    rng, values = streams.generator(state.config.seed, "permutation", state.round), np.zeros(count)
    known: dict[bytes, float] = {}
    for _ in range(permutations):
        joined = np.zeros(count, dtype=bool)
        for client in rng.permutation(count):
            before, joined[client] = joined.copy(), True
            for members in (before, joined):
                if members.tobytes() not in known:
                    known[members.tobytes()] = _coalition_loss(state, members)
            values[client] += known[before.tobytes()] - known[joined.tobytes()]
    return _normalised(state, values)


def _coalition_loss(state: ServerState, members: np.ndarray) -> float:
    """Return the validation loss of the mean model of a part of the cohort, weighted by samples.

    members: bool (K,). An empty part has the loss of the model before the round.
    """
    if not members.any():
        return state.judge(state.weights)[0]
    coefficients = size(state) * members
    return state.judge(state.average(coefficients / coefficients.sum()))[0]


def _normalised(state: ServerState, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the positive values divided by their sum; the paper's weights if none is positive."""
    values = np.maximum(values, 0)
    return values / values.sum() if values.sum() > 0 else size(state)


def _proportional(state: ServerState, setting: str, factors: Callable[[float], np.ndarray]) -> np.ndarray:
    """Return rho_n ~ |D_n| factors_n: float64 (K,).

    factors: a function of the value of rho.`setting`. Raises UserError if the weights overflow or vanish in
    float64.
    """
    value = getattr(state.config.rho, setting)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weights = state.samples[state.cohort] * factors(value)
        total = weights.sum()
    if not 0 < total < np.inf:
        effect = "vanish" if total == 0 else "overflow"
        raise UserError(
            f"rho.{setting}={value:g} makes the weights of rho.policy={state.config.rho.policy} {effect} "
            "in float64; set it nearer to 0"
        )
    return weights / total


RHO: dict[str, Policy] = {
    "size": size,
    "uniform": uniform,
    "quality": quality,
    "loss": loss,
    "similarity": similarity,
    "leave_one_out": leave_one_out,
    "shapley": shapley,
}
