"""Policies are plain functions of what the server knows. A configuration names one of ours, or module:function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from genfl_mpi.config.settings import Config


@dataclass(frozen=True)
class ServerState:
    """What the server knows when it asks a policy. Arrays of clients are indexed by client id.

    round: of which the first is 0. samples: int64 (clients,), |D_n|. shared_labels: int32 (clients, classes), what the clients
    told of their labels: counts, or 0 and 1, as config.label_sharing has it. generated: int64 (classes,), images so far;
    images: of them, and of the public pool, those that the augmented model learned from.

    losses, norms: float64 (clients,), from each client's last training that was heard: its loss on the global model (mean over the
    first local epoch), and the Euclidean length of its change; NaN before, and 0 if they were not finite. last: int64
    (clients,), the round in which it was chosen last, heard or not, counted from 1; 0 before.
    forecast: `edge.forecast.Forecast`, what training would take each client in this round (seconds, joules) and its charge
    left, in the configured world; else None. memory: for a policy that needs it, a dict of arrays, its own, that it may change:
    it is kept from round to round, and in the checkpoint.

    available: bool (clients,), who takes part in this round for the pay; None if all do. A selection policy must keep to these,
    and is not asked if they are no more than the cohort.
    cohort: int64 (K,), client ids; None while they are not chosen. A rho policy after training is not asked of clients that
    were dropped.
    reports: what the cohort's training reported, columns of /clients by name, float64 (K,); for policies after training.

    Of the weights, float32 (size,) with the `parameters` first, a kappa policy has those before the round, of the aggregated
    clients, and of the augmented model; a rho policy after training has those before the round. For policies that need them:
    judge(weights) -> (loss, accuracy) on the validation data; average(coefficients) -> weights, the sum of the cohort's
    models, with coefficients (K,) in [0, 1]; cosines(weights) -> (K,), of each client's change with that of `weights`.
    """

    round: int
    config: Config
    samples: np.ndarray
    shared_labels: np.ndarray
    generated: np.ndarray
    images: int = 0
    losses: np.ndarray | None = None
    norms: np.ndarray | None = None
    last: np.ndarray | None = None
    forecast: Any = None
    memory: dict | None = None
    available: np.ndarray | None = None
    cohort: np.ndarray | None = None
    reports: dict | None = None
    parameters: int = 0
    weights: np.ndarray | None = None
    fl_weights: np.ndarray | None = None
    augmented_weights: np.ndarray | None = None
    judge: Callable | None = None
    average: Callable | None = None
    cosines: Callable | None = None


def needs(*what):
    """Decorate a policy with what it needs of a run besides the state that costs nothing.

    validation: validation data, config.validation.source, for `judge`. world: config.world, for `forecast`. models: the
    cohort's trained models: a rho policy then is asked after training, and may use `reports`, `average` and `cosines`.
    memory: `memory`, without which a run cannot be continued.
    """

    def decorated(policy):
        policy.needs = frozenset(what)
        return policy

    return decorated


def needed(policy):
    """What a policy needs: a frozenset of the words of `needs`."""
    return getattr(policy, "needs", frozenset())


def skew(histograms, population=None):
    """EMD of each row of label counts, float64 (n,) in [0, 2], to a mix of labels, by default that of all rows together; NaN
    for a row of zeros, a client that shared nothing (Zhao et al. 2018)."""
    totals = histograms.sum(1, keepdims=True)
    if population is None:
        population = histograms.sum(0)
    mix = population / max(1, population.sum())
    distance = np.abs(histograms / np.maximum(totals, 1) - mix).sum(1)
    return np.where(totals[:, 0] > 0, distance, np.nan)


def mixed(state, kappa2):
    """The model on the segment from the clients' average to the augmented one: float32 (size,)."""
    return ((1 - kappa2) * state.fl_weights.astype(np.float64) + kappa2 * state.augmented_weights).astype(
        np.float32
    )
