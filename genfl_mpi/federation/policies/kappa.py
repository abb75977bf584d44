"""The augmented model's weight in Eq. (1): (state) -> kappa2 in [0, 1]; kappa1 is 1 - kappa2."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation.policies import validated_kappa

if TYPE_CHECKING:
    from genfl_mpi.federation.policies import Policy, ServerState


def fixed(state: ServerState) -> float:
    """Return the configured kappa2 in every round."""
    return state.config.kappa.kappa2


def linear(state: ServerState) -> float:
    """Go from kappa2 to kappa.end in equal steps over kappa.horizon rounds."""
    return _between(state, 1 - _progress(state))


def cosine(state: ServerState) -> float:
    """Go from kappa2 to kappa.end along half a cosine over kappa.horizon rounds."""
    return _between(state, (1 + math.cos(math.pi * _progress(state))) / 2)


def exponential(state: ServerState) -> float:
    """Go from kappa2 towards kappa.end; multiply the distance by kappa.decay every round."""
    return _between(state, state.config.kappa.decay**state.round)


def step(state: ServerState) -> float:
    """Go from kappa2 towards kappa.end; multiply the distance by kappa.decay every kappa.period rounds."""
    return _between(state, state.config.kappa.decay ** (state.round // state.config.kappa.period))


def amount(state: ServerState) -> float:
    """Weight by the amount of data: q |D_gen| / (q |D_gen| + sum |D_n|).

    q = kappa.quality is the worth of a generated image in real samples.
    """
    worth = state.config.kappa.quality * state.images
    return worth / (worth + state.samples[state.cohort].sum())


def alignment(state: ServerState) -> float:
    """Return max(0, cos(Delta_a, Delta_fl)): weight the augmented model by the agreement of both updates."""
    fl, augmented = (
        (weights[: state.parameters] - state.weights[: state.parameters]).astype(np.float64)
        for weights in (state.fl_weights, state.augmented_weights)
    )
    lengths = np.linalg.norm(fl) * np.linalg.norm(augmented)
    return min(1.0, max(0.0, fl @ augmented / lengths)) if lengths else 0.0


def bias_optimal(state: ServerState) -> float:
    """Return A / (A + D), which minimises A (1 - kappa2)^2 + D kappa2^2.

    A = (EMD g_data)^2 comes from the skew of the cohort's pooled labels, D = g_diff^2 from the generator's
    error. The result depends only on theta = g_diff / (2 g_data), which `quality` measures: kappa.theta.
    """
    pooled = state.shared_labels[state.cohort].sum(0, keepdims=True)
    bias = np.nan_to_num(earth_movers_distance(pooled, state.shared_labels.sum(0)))[0] ** 2
    error = (2 * state.config.kappa.theta) ** 2
    return bias / (bias + error) if bias else 0.0


def emd(state: ServerState) -> float:
    """Return half the EMD of the cohort's labels to the population's, mean over clients weighted by size.

    Our reading of GenFV (Qiang, Chang and Min 2025): the more skewed the clients, the more the images count.
    Clients that shared no labels do not count; without any it is 0.
    """
    labels, samples = state.shared_labels[state.cohort], state.samples[state.cohort].astype(np.float64)
    distance = earth_movers_distance(labels, state.shared_labels.sum(0))
    known = np.isfinite(distance)
    return float(np.average(distance[known], weights=samples[known]) / 2) if known.any() else 0.0


def _progress(state: ServerState) -> float:
    return min(1.0, state.round / state.config.kappa.horizon)


def _between(state: ServerState, share: float) -> float:
    settings = state.config.kappa
    return settings.end + (settings.kappa2 - settings.end) * share


KAPPA: dict[str, Policy] = {
    "fixed": fixed,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "step": step,
    "amount": amount,
    "emd": emd,
    "alignment": alignment,
    "bias_optimal": bias_optimal,
    **validated_kappa.KAPPA,
}
