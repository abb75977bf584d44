"""The clients' weights in Eq. (1): (state) -> float array (cohort,), not negative, with sum 1."""

import numpy as np

from genfl_mpi.federation.policies import needs, skew
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError


def size(state):
    """rho_n = |D_n| / sum |D_m| over the cohort, as the paper has it."""
    samples = state.samples[state.cohort].astype(np.float64)
    return samples / samples.sum()


def uniform(state):
    """The same for every client of the cohort."""
    return np.full(len(state.cohort), 1 / len(state.cohort))


def quality(state):
    """rho_n ~ |D_n| (1 - EMD_n / 2)^gamma, by the labels that the client shared; one that shared nothing is taken to be as skewed
    as the mean of those of the cohort that did. gamma: rho.gamma, at 0 the paper's."""
    distance = skew(state.shared_labels)[state.cohort]
    known = distance[~np.isnan(distance)]
    distance = np.where(np.isnan(distance), known.mean() if len(known) else 0.0, distance)
    return _proportional(state, "gamma", lambda gamma: (1 - distance / 2) ** gamma)


@needs("models")
def loss(state):
    """rho_n ~ |D_n| F_n^power, with F_n the client's loss on the global model. power: rho.power; above 0 it is q-FFL's
    fairness (Li et al. 2020), below 0 trust in who fits, at 0 the paper's."""
    return _proportional(
        state, "power", lambda power: np.maximum(state.reports["loss_first_epoch"], 1e-12) ** power
    )


@needs("models")
def similarity(state):
    """rho_n ~ |D_n| e^f(theta_n), with theta_n the angle between the client's change and the cohort's mean change, and f(theta)
    = a (1 - e^(-e^(-a (theta - 1)))), a Gompertz function (FedAdp, Wu and Wang 2021, without its smoothing over rounds). a:
    rho.alpha, at 0 the paper's."""
    angle = np.arccos(np.clip(state.cosines(state.average(size(state))), -1, 1))
    return _proportional(
        state, "alpha", lambda alpha: np.exp(alpha * (1 - np.exp(-np.exp(-alpha * (angle - 1)))))
    )


@needs("models", "validation")
def leave_one_out(state):
    """rho_n ~ by how much the validation loss of the cohort's mean rises without the client, where it does; the paper's weights
    if it does for nobody."""
    whole = _loss_of(state, np.ones(len(state.cohort), dtype=bool))
    others = ~np.eye(len(state.cohort), dtype=bool)
    return _share_of(state, [_loss_of(state, members) - whole for members in others])


@needs("models", "validation")
def shapley(state):
    """rho_n ~ the client's Shapley value in lowering the validation loss, where it is positive, by rho.permutations orders
    of joining drawn at random (Ghorbani and Zou 2019); the paper's weights if it is for nobody."""
    count, permutations = len(state.cohort), state.config.rho.permutations
    rng, known, values = streams.generator(state.config.seed, "permutation", state.round), {}, np.zeros(count)
    for _ in range(permutations):
        joined = np.zeros(count, dtype=bool)
        for one in rng.permutation(count):
            before, joined[one] = joined.copy(), True
            for members in (before, joined):
                if members.tobytes() not in known:
                    known[members.tobytes()] = _loss_of(state, members)
            values[one] += known[before.tobytes()] - known[joined.tobytes()]
    return _share_of(state, values)


def _loss_of(state, members):
    """Validation loss of the mean of some of the cohort, bool (K,), by size; of nobody, that of the model before the round."""
    if not members.any():
        return state.judge(state.weights)[0]
    coefficients = size(state) * members
    return state.judge(state.average(coefficients / coefficients.sum()))[0]


def _share_of(state, values):
    values = np.maximum(values, 0)
    return values / values.sum() if values.sum() > 0 else size(state)


def _proportional(state, setting, factors):
    """rho_n ~ |D_n| factors_n: float64 (K,). factors: a function of the value of rho.`setting`. Raises UserError if the value
    takes the weights out of the range of float64."""
    value = getattr(state.config.rho, setting)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weights = state.samples[state.cohort] * factors(value)
        total = weights.sum()
    if not 0 < total < np.inf:
        raise UserError(
            f"rho.{setting}={value:g} makes the weights of rho.policy={state.config.rho.policy} {'vanish' if total == 0 else 'overflow'} "
            "in float64; set it nearer to 0"
        )
    return weights / total


RHO = {
    "size": size,
    "uniform": uniform,
    "quality": quality,
    "loss": loss,
    "similarity": similarity,
    "leave_one_out": leave_one_out,
    "shapley": shapley,
}
