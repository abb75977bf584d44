"""Policies: plain functions of the server's state. A configuration names one of ours, or module:function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.edge.forecast import Forecast

Policy: TypeAlias = "Callable[[ServerState], np.ndarray | float]"

# Fields that are None until they are known. They are typed as present, as a policy gets what it needs.
UNSET: Any = None


def _missing(name: str, needed: str) -> Any:
    """Return the default of a function of the state: it raises TypeError with what the policy needs."""

    def unavailable(*_: Any) -> Any:
        raise TypeError(f"state.{name} needs {needed}")

    return unavailable


@dataclass(frozen=True)
class ServerState:
    """Hold what the server knows when it calls a policy. Arrays over clients are indexed by client id.

    round: starts at 0. samples: int64 (clients,), |D_n|. shared_labels: int32 (clients, classes), the labels
    that the clients shared: counts, or 0 and 1, as set by config.label_sharing. generated: int64 (classes,),
    images so far. images: number of generated images, and of images of the public pool, that the augmented
    model was trained on.

    losses, norms: float64 (clients,), from each client's last aggregated training: its loss on the global
    model (mean over the first local epoch), and the Euclidean norm of its update; NaN before, and 0 if they
    were not finite. last: int64 (clients,), the round in which the client was last chosen, whether it was
    aggregated or not, counted from 1; 0 if never. forecast: `edge.forecast.Forecast` of what training would
    cost each client in this round (seconds, joules), and its remaining charge, in the configured world;
    otherwise None. memory: a dict of arrays that a policy with `needs("memory")` may modify; kept from round
    to round, and in the checkpoint.

    available: bool (clients,), the clients that participate for the payment; None if all do. A selection
    policy must choose among these; it is not called if their number does not exceed the cohort size. cohort:
    int64 (K,), client ids; None before selection. A rho policy that runs after training does not get dropped
    clients. reports: what the cohort reported after training, columns of /clients by name, float64 (K,); for
    policies that run after training.

    Weights are float32 (size,), with the `parameters` trainable ones first. A kappa policy gets those before
    the round, those of the aggregated clients, and those of the augmented model; a rho policy that runs after
    training gets those before the round. For policies that need them: judge(weights) -> (loss, accuracy) on
    the validation data; average(coefficients) -> weights, the sum of the cohort's models times coefficients
    (K,) in [0, 1]; cosines(weights) -> (K,), the cosine of each client's update with that of `weights`.
    """

    round: int
    config: Config
    samples: np.ndarray
    shared_labels: np.ndarray
    generated: np.ndarray
    images: int = 0
    losses: np.ndarray = UNSET
    norms: np.ndarray = UNSET
    last: np.ndarray = UNSET
    forecast: Forecast = UNSET
    memory: dict[str, np.ndarray] = UNSET
    available: np.ndarray | None = None
    cohort: np.ndarray = UNSET
    reports: dict[str, np.ndarray] = UNSET
    parameters: int = 0
    weights: np.ndarray = UNSET
    fl_weights: np.ndarray = UNSET
    augmented_weights: np.ndarray = UNSET
    judge: Callable[[np.ndarray], tuple[float, float]] = _missing(
        "judge", '@needs("validation") above the policy, and validation.source'
    )
    average: Callable[[np.ndarray], np.ndarray] = _missing("average", '@needs("models") above a rho policy')
    cosines: Callable[[np.ndarray], np.ndarray] = _missing("cosines", '@needs("models") above a rho policy')


def needs(*features: str) -> Callable[[Policy], Policy]:
    """Decorate a policy with the features that it needs besides the state that costs nothing.

    validation: validation data, config.validation.source, for `judge`. world: config.world, for `forecast`.
    models: the cohort's trained models; a rho policy is then called after training, and may use `reports`,
    `average` and `cosines`. memory: `memory`, without which a run cannot be resumed.
    """

    def decorated(policy: Policy) -> Policy:
        policy.needs = frozenset(features)  # type: ignore[attr-defined]
        return policy

    return decorated


def needs_of(policy: Policy) -> frozenset[str]:
    """Return the features that a policy needs, by their names in `needs`."""
    return getattr(policy, "needs", frozenset())


def mix(state: ServerState, kappa2: float) -> np.ndarray:
    """Mix the clients' average (kappa2 = 0) and the augmented model (kappa2 = 1): float32 (size,)."""
    return ((1 - kappa2) * state.fl_weights.astype(np.float64) + kappa2 * state.augmented_weights).astype(
        np.float32
    )
