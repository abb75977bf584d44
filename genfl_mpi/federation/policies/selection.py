"""Which clients train: (state) -> int array (cohort,) of distinct client ids.

Candidates are selection.candidates clients drawn at random, or all clients if it is not set. Ties are broken
by the order of the draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation.policies import needs
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.policies import Policy, ServerState


def random(state: ServerState) -> np.ndarray:
    """Draw the cohort uniformly, without replacement."""
    rng = streams.generator(state.config.seed, "cohort", state.round)
    if state.available is None:  # avoids a pass over all clients, of which there may be a million
        return rng.choice(state.config.clients, state.config.cohort, replace=False, shuffle=False)
    available = np.flatnonzero(state.available)
    return available[rng.choice(len(available), state.config.cohort, replace=False, shuffle=False)]


def poisson(state: ServerState) -> np.ndarray:
    """Draw each client independently with probability cohort / clients: the size of the cohort varies."""
    clients, rng = state.config.clients, streams.generator(state.config.seed, "cohort", state.round)
    return np.flatnonzero(rng.random(clients) < state.config.cohort / clients)


def largest_cohort(config: Config) -> int:
    """Return the size of the run's largest cohort, for which its messages are allocated."""
    if not config.trains_clients:
        return 0
    if config.selection.policy != "poisson":
        return config.cohort
    share = config.cohort / config.clients
    return max(
        int((streams.generator(config.seed, "cohort", round).random(config.clients) < share).sum())
        for round in range(config.rounds)
    )


def label_cover(state: ServerState) -> np.ndarray:
    """Choose clients whose pooled labels match the population.

    The first client is random. Then always add the candidate that minimises the EMD of the cohort's pooled
    shared labels to the population's. A client that shared nothing does not change the pooled labels: it is
    chosen when no other candidate lowers the EMD.
    """
    return _cover(_candidates(state), state)


def _cover(candidates: np.ndarray, state: ServerState) -> np.ndarray:
    """Choose up to a cohort of candidates whose pooled labels match the population: int (K,)."""
    population, chosen, left = state.shared_labels.sum(0), [candidates[0]], list(candidates[1:])
    pooled = state.shared_labels[chosen[0]].astype(np.int64)
    while left and len(chosen) < state.config.cohort:
        distance = np.nan_to_num(
            earth_movers_distance(pooled + state.shared_labels[left], population), nan=2.0
        )
        chosen.append(left.pop(int(distance.argmin())))
        pooled += state.shared_labels[chosen[-1]]
    return np.array(chosen)


@needs("world")
def deadline(state: ServerState) -> np.ndarray:
    """Choose candidates that finish by world.deadline_s, in the order of the draw; then the fastest others.

    FedCS (Nishio and Yonetani 2019) takes as many clients as fit; here the cohort size is fixed and the
    bandwidth is shared equally.
    """
    candidates = _candidates(state)
    seconds = state.forecast.seconds[candidates]
    late = seconds > _deadline(state)
    return candidates[np.lexsort((np.arange(len(late)), np.where(late, seconds, 0)))][: state.config.cohort]


def power_of_choice(state: ServerState) -> np.ndarray:
    """Choose the candidates with the largest loss in their last training.

    Candidates are drawn in proportion to |D_n|. Clients that were never chosen come first; chosen clients
    without a known loss get the mean of the others. Source: Cho et al. 2020, the variant without extra
    messages.
    """
    rng = streams.generator(state.config.seed, "candidates", state.round)
    weights = state.samples * _available(state)
    candidates = rng.choice(
        state.config.clients, _candidate_count(state), replace=False, p=weights / weights.sum()
    )
    losses = np.where(state.last > 0, _with_mean_for_nan(state.losses), np.inf)
    return candidates[np.argsort(-losses[candidates], kind="stable")][: state.config.cohort]


@needs("world")
def oort(state: ServerState) -> np.ndarray:
    """Choose the clients with the highest utility, and explore new ones (Lai et al. 2021).

    Utility is |D_n| F_n plus a bonus for long absence, times (T / t_n)^selection.penalty if the client's time
    t_n exceeds T, the deadline or, without one, the median time. F_n replaces the root mean squared loss of
    the paper; clients without a known loss get the mean of the others. A share selection.exploration of the
    cohort is drawn from clients that were never chosen.
    """
    order, settings = _candidates(state), state.config.selection
    known, new = order[state.last[order] > 0], order[state.last[order] == 0]
    exploring = min(
        len(new), max(round(settings.exploration * state.config.cohort), state.config.cohort - len(known))
    )
    utility = state.samples[known] * _with_mean_for_nan(state.losses)[known]
    utility = utility / max(1e-300, utility.max(initial=0)) + np.sqrt(
        0.1 * np.log(state.round + 1) / state.last[known]
    )
    seconds = state.forecast.seconds[known]
    wanted = _deadline(state) or np.median(state.forecast.seconds)
    utility *= np.minimum(1, wanted / seconds) ** settings.penalty
    useful = known[np.argsort(-utility, kind="stable")][: state.config.cohort - exploring]
    return np.concatenate([useful, new[:exploring]])


@needs("world")
def sojourn(state: ServerState) -> np.ndarray:
    """Choose clients that finish before they leave their cell, and whose pooled labels match the population.

    If too few finish, those that lack the least time follow.
    """
    candidates, forecast = _candidates(state), state.forecast
    assert forecast.sojourn is not None
    lacking = (forecast.seconds - np.minimum(forecast.sojourn, _deadline(state) or np.inf))[candidates]
    stay, leave = candidates[lacking <= 0], candidates[lacking > 0]
    chosen = _cover(stay, state) if len(stay) else stay
    later = leave[np.argsort(lacking[lacking > 0], kind="stable")]
    return np.concatenate([chosen, later])[: state.config.cohort]


@needs("world")
def energy(state: ServerState) -> np.ndarray:
    """Choose the candidates whose training and sending costs the least energy in this round."""
    candidates = _candidates(state)
    return candidates[np.argsort(state.forecast.joules[candidates], kind="stable")][: state.config.cohort]


@needs("world")
def battery(state: ServerState) -> np.ndarray:
    """Choose the candidates with the highest remaining share of their initial charge after this round.

    Clients whose charge does not suffice for the round come last.
    """
    candidates = _candidates(state)
    left = (state.forecast.charge - state.forecast.joules)[candidates]
    share = np.where(left >= 0, left / state.forecast.battery[candidates], -1.0)
    return candidates[np.argsort(-share, kind="stable")][: state.config.cohort]


def importance(state: ServerState) -> np.ndarray:
    """Draw the cohort in proportion to |D_n| |Delta_n|.

    |Delta_n| is the norm of the client's last update. Clients without a known update get the mean of the
    others. Source: optimal client sampling, Chen et al. 2022.
    """
    weights = state.samples * np.maximum(_with_mean_for_nan(state.norms), 1e-12) * _available(state)
    rng = streams.generator(state.config.seed, "candidates", state.round)
    return rng.choice(state.config.clients, state.config.cohort, replace=False, p=weights / weights.sum())


def _with_mean_for_nan(values: np.ndarray) -> np.ndarray:
    """Replace NaN by the mean of the finite values; by 1 if all are NaN. float64 (clients,)."""
    is_known = np.isfinite(values)
    return np.where(is_known, values, values[is_known].mean() if is_known.any() else 1.0)


def _available(state: ServerState) -> np.ndarray:
    """Return the clients that participate in the round: bool (clients,)."""
    return np.ones(state.config.clients, dtype=bool) if state.available is None else state.available


def _deadline(state: ServerState) -> Any:
    """Return world.deadline_s, or None. Only for policies that need a world."""
    assert state.config.world is not None
    return state.config.world.deadline_s


def _candidate_count(state: ServerState) -> int:
    available = int(_available(state).sum())
    return max(state.config.cohort, min(available, state.config.selection.candidates or available))


def _candidates(state: ServerState) -> np.ndarray:
    """Return the candidates in random order: int (candidates,)."""
    rng = streams.generator(state.config.seed, "candidates", state.round)
    order = rng.permutation(state.config.clients)
    return order[_available(state)[order]][: _candidate_count(state)]


SELECTION: dict[str, Policy] = {
    "random": random,
    "poisson": poisson,
    "label_cover": label_cover,
    "deadline": deadline,
    "power_of_choice": power_of_choice,
    "oort": oort,
    "sojourn": sojourn,
    "energy": energy,
    "battery": battery,
    "importance": importance,
}
