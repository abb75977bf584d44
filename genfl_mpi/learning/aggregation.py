"""Federated algorithms besides plain averaging: what the server makes of the clients' average, and FedNova's weights.

FedProx is a term of the clients' training (`training.train`). The others work on delta = omega_fl - omega^t, the mean
change of the parameters; BatchNorm's statistics, which are no parameters, are averaged as ever.
"""

import math

import torch

from genfl_mpi.learning.batches import local_batches

BLOCK = 32768  # weights of which a cache holds what is computed with them


def fedavgm(state, delta, settings):
    """Server momentum (Hsu et al. 2019)."""
    state["momentum"] = settings.beta1 * state.get("momentum", 0) + delta
    return settings.server_lr * state["momentum"]


def fedadam(state, delta, settings):
    """Adam at the server, without bias correction (Reddi et al. 2021, algorithm 2)."""
    square = state.get("square", torch.full_like(delta, settings.tau**2))
    state["square"] = settings.beta2 * square + (1 - settings.beta2) * delta**2
    return _adaptive(state, delta, settings)


def fedyogi(state, delta, settings):
    """Yogi at the server (Reddi et al. 2021, algorithm 2)."""
    square = state.get("square", torch.full_like(delta, settings.tau**2))
    state["square"] = square - (1 - settings.beta2) * delta**2 * torch.sign(square - delta**2)
    return _adaptive(state, delta, settings)


def _adaptive(state, delta, settings):
    state["momentum"] = settings.beta1 * state.get("momentum", 0) + (1 - settings.beta1) * delta
    return settings.server_lr * state["momentum"] / (state["square"].sqrt() + settings.tau)


SERVER = {"fedavgm": fedavgm, "fedadam": fedadam, "fedyogi": fedyogi}


def server_step(state, omega_t, omega_fl, parameters, settings):
    """The federated model after the server's step: float64 (size,).

    state: a dict of float64 (parameters,), changed in place: empty before the first round. omega_t: float32 (size,);
    omega_fl: float64 (size,), the clients' average; parameters: how many of the weights are parameters; settings:
    config.algorithm.
    """
    if settings.name not in SERVER:
        return omega_fl
    before = omega_t[:parameters].double()
    change = SERVER[settings.name](state, omega_fl[:parameters] - before, settings)
    return torch.cat([before + change, omega_fl[parameters:]])


def normalised(rho, samples, training):
    """FedNova's weights (Wang et al. 2020) of omega_n in the sum: rho_n tau_eff / tau_n. What they lack of 1 is the weight
    of omega^t.

    rho: float64 (cohort,); samples: int (cohort,); tau_n is the weight that a gradient has in the whole of client n's local
    change: its number of steps, or with momentum m the sum over steps k of (1 - m^(tau - k)) / (1 - m).
    """
    steps = training.epochs * local_batches(samples, training.batch_size)
    m = training.momentum
    tau = (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)
    return rho * (rho @ tau) / tau


def unnormalised(total, omega_t, parameters, weight):
    """FedNova's average, float64 (size,): what its weights lack of 1, or have above it, is the weight of omega^t. BatchNorm's
    statistics, of which a difference would be no variance, are averaged by the same weights over their sum.

    total: float64 (size,), the weighted sum; omega_t: float32 (size,); weight: the sum of the weights.
    """
    return torch.cat([total[:parameters] + (1 - weight) * omega_t[:parameters].double(), total[parameters:] / weight])


def distance(one, other, parameters):
    """Euclidean distance of two models' parameters, in float64."""
    return math.sqrt(_dot(one, one, other, parameters))


def cosine(one, other, before, parameters):
    """Cosine of the angle between two models' changes from `before`; NaN if one has not changed."""
    product = math.sqrt(_dot(one, one, before, parameters) * _dot(other, other, before, parameters))
    return _dot(one, other, before, parameters) / product if product else math.nan


def _dot(one, other, before, parameters):
    """The product of two models' changes, in float64. Block by block: of whole vectors the memory would take most of the time."""
    total = 0.0
    for start in range(0, parameters, BLOCK):
        block = slice(start, min(start + BLOCK, parameters))
        since = before[block].double()
        change = one[block].double() - since
        total += torch.dot(change, change if other is one else other[block].double() - since).item()
    return total


def mean_cosine(rho, norms, norm_of_sum):
    """Mean cosine between the changes of two different clients, a pair weighted by rho_i |Delta_i| rho_j |Delta_j|.

    It follows from |sum rho Delta|^2 = sum rho_i^2 |Delta_i|^2 + sum over pairs of rho_i rho_j Delta_i Delta_j, so that no
    client's change need travel. rho, norms: float64 (cohort,); norm_of_sum: |sum rho Delta|. NaN for a cohort of one.
    """
    parts = rho * norms
    pairs = parts.sum() ** 2 - (parts**2).sum()
    return (norm_of_sum**2 - (parts**2).sum()) / pairs if pairs > 0 else math.nan
