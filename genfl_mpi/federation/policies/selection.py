"""Which clients train: (state) -> int array (cohort,) of distinct client ids.

Where a policy says candidates, these are selection.candidates clients drawn at random, or all if it is not set. Ties go to
whom the draw has first.
"""

import numpy as np

from genfl_mpi.federation.policies import needs, skew
from genfl_mpi.util import streams


def random(state):
    """Uniformly, without replacement."""
    rng = streams.generator(state.config.seed, "cohort", state.round)
    if state.available is None:  # a million clients are not looked at one by one
        return rng.choice(state.config.clients, state.config.cohort, replace=False, shuffle=False)
    available = np.flatnonzero(state.available)
    return available[rng.choice(len(available), state.config.cohort, replace=False, shuffle=False)]


def label_cover(state):
    """The first at random; then always the candidate with whom the pooled labels of the cohort come nearest to the population's,
    by EMD, as far as they were shared. One that shared nothing changes nothing: it is chosen when nobody brings them nearer."""
    candidates, population = _candidates(state), state.shared_labels.sum(0)
    chosen, left = [candidates[0]], list(candidates[1:])
    pooled = state.shared_labels[chosen[0]].astype(np.int64)
    while len(chosen) < state.config.cohort:
        distance = np.nan_to_num(skew(pooled + state.shared_labels[left], population), nan=2.0)
        chosen.append(left.pop(int(distance.argmin())))
        pooled += state.shared_labels[chosen[-1]]
    return np.array(chosen)


@needs("world")
def deadline(state):
    """Candidates that will be done by world.deadline_s, in the order of the draw; if they are too few, then the fastest of the
    others. (FedCS, Nishio and Yonetani 2019, takes as many as fit; here the cohort's size is given, and its bandwidth equal.)"""
    candidates = _candidates(state)
    seconds = state.forecast.seconds[candidates]
    late = seconds > state.config.world.deadline_s
    return candidates[np.lexsort((np.arange(len(late)), np.where(late, seconds, 0)))][: state.config.cohort]


def power_of_choice(state):
    """Of candidates drawn in proportion to |D_n| those with the largest loss when they trained last; who was never chosen is first
    (Cho et al. 2020, the variant that needs no extra messages), and who never was heard counts as the mean of the others."""
    rng = streams.generator(state.config.seed, "candidates", state.round)
    weights = state.samples * _available(state)
    candidates = rng.choice(state.config.clients, _count(state), replace=False, p=weights / weights.sum())
    losses = np.where(state.last > 0, _filled(state.losses), np.inf)
    return candidates[np.argsort(-losses[candidates], kind="stable")][: state.config.cohort]


@needs("world")
def oort(state):
    """Of those that have trained the most useful, |D_n| F_n plus a bonus for long absence, times (T / t_n)^selection.penalty if
    the client needs longer than T, the deadline or else the median time; a share selection.exploration of the cohort is drawn
    from those that were never chosen; who never was heard counts as the mean of the others. (Lai et al. 2021; F_n stands for the
    root of the mean squared loss.)"""
    order, settings = _candidates(state), state.config.selection
    known, new = order[state.last[order] > 0], order[state.last[order] == 0]
    exploring = min(
        len(new), max(round(settings.exploration * state.config.cohort), state.config.cohort - len(known))
    )
    utility = state.samples[known] * _filled(state.losses)[known]
    utility = utility / max(1e-300, utility.max(initial=0)) + np.sqrt(
        0.1 * np.log(state.round + 1) / state.last[known]
    )
    seconds = state.forecast.seconds[known]
    wanted = state.config.world.deadline_s or np.median(state.forecast.seconds)
    utility *= np.minimum(1, wanted / seconds) ** settings.penalty
    useful = known[np.argsort(-utility, kind="stable")][: state.config.cohort - exploring]
    return np.concatenate([useful, new[:exploring]])


@needs("world")
def energy(state):
    """The candidates whose training and sending takes the fewest joules in this round."""
    candidates = _candidates(state)
    return candidates[np.argsort(state.forecast.joules[candidates], kind="stable")][: state.config.cohort]


@needs("world")
def battery(state):
    """The candidates with the most charge left after this round, of their charge at the beginning; who cannot pay for the round
    is last."""
    candidates = _candidates(state)
    left = (state.forecast.charge - state.forecast.joules)[candidates]
    share = np.where(left >= 0, left / state.forecast.battery[candidates], -1.0)
    return candidates[np.argsort(-share, kind="stable")][: state.config.cohort]


def importance(state):
    """At random in proportion to |D_n| |Delta_n|, the importance of a client's data being the length of its last change (optimal
    client sampling, Chen et al. 2022); who never was heard counts as the mean of the others."""
    weights = state.samples * np.maximum(_filled(state.norms), 1e-12) * _available(state)
    rng = streams.generator(state.config.seed, "candidates", state.round)
    return rng.choice(state.config.clients, state.config.cohort, replace=False, p=weights / weights.sum())


def _filled(known):
    """What is known of the clients, float64 (clients,), with the mean of it in place of NaN; all alike if nothing is."""
    there = np.isfinite(known)
    return np.where(there, known, known[there].mean() if there.any() else 1.0)


def _available(state):
    """Who takes part in the round: bool (clients,)."""
    return np.ones(state.config.clients, dtype=bool) if state.available is None else state.available


def _count(state):
    available = int(_available(state).sum())
    return max(state.config.cohort, min(available, state.config.selection.candidates or available))


def _candidates(state):
    """int (candidates,), in random order."""
    rng = streams.generator(state.config.seed, "candidates", state.round)
    order = rng.permutation(state.config.clients)
    return order[_available(state)[order]][: _count(state)]


SELECTION = {
    "random": random,
    "label_cover": label_cover,
    "deadline": deadline,
    "power_of_choice": power_of_choice,
    "oort": oort,
    "energy": energy,
    "battery": battery,
    "importance": importance,
}
