"""The augmented model's weight in Eq. (1): (state) -> kappa2 in [0, 1]; kappa1 is 1 - kappa2."""

import math

import numpy as np

from genfl_mpi.federation.policies import judged, skew


def fixed(state):
    """The configured kappa2, in every round."""
    return state.config.kappa.kappa2


def linear(state):
    """From kappa2 to kappa.end, in equal steps over kappa.horizon rounds."""
    return _between(state, 1 - _progress(state))


def cosine(state):
    """From kappa2 to kappa.end, along half a cosine over kappa.horizon rounds."""
    return _between(state, (1 + math.cos(math.pi * _progress(state))) / 2)


def exponential(state):
    """From kappa2 towards kappa.end, of which the distance is multiplied by kappa.decay in every round."""
    return _between(state, state.config.kappa.decay**state.round)


def step(state):
    """From kappa2 towards kappa.end, of which the distance is multiplied by kappa.decay every kappa.period rounds."""
    return _between(state, state.config.kappa.decay ** (state.round // state.config.kappa.period))


def amount(state):
    """q |D_gen| / (q |D_gen| + sum |D_n|): by the data on either side, a generated image being worth q = kappa.quality."""
    worth = state.config.kappa.quality * state.images
    return worth / (worth + state.samples[state.cohort].sum())


def alignment(state):
    """max(0, cos(Delta_a, Delta_fl)): the more the two models' changes agree, the more the augmented one counts."""
    fl, augmented = (
        (weights[: state.parameters] - state.weights[: state.parameters]).astype(np.float64)
        for weights in (state.fl_weights, state.augmented_weights)
    )
    lengths = np.linalg.norm(fl) * np.linalg.norm(augmented)
    return min(1.0, max(0.0, fl @ augmented / lengths)) if lengths else 0.0


def bias_optimal(state):
    """A / (A + D) with A = (EMD g_data)^2, the skew of the cohort's pooled labels, and D = g_diff^2, the generator's error: the
    kappa2 of the least A (1 - kappa2)^2 + D kappa2^2. Only theta = g_diff / (2 g_data) matters, as `quality` measures it:
    kappa.theta."""
    pooled = state.shared_labels[state.cohort].sum(0, keepdims=True)
    bias = np.nan_to_num(skew(pooled, state.shared_labels.sum(0)))[0] ** 2
    error = (2 * state.config.kappa.theta) ** 2
    return bias / (bias + error) if bias else 0.0


def _progress(state):
    return min(1.0, state.round / state.config.kappa.horizon)


def _between(state, share):
    settings = state.config.kappa
    return settings.end + (settings.kappa2 - settings.end) * share


KAPPA = {
    "fixed": fixed,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "step": step,
    "amount": amount,
    "alignment": alignment,
    "bias_optimal": bias_optimal,
    **judged.KAPPA,
}
