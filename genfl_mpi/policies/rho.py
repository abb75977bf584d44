"""The clients' weights in Eq. (1): (state) -> float array (cohort,), not negative, with sum 1."""

import numpy as np


def size(state):
    """rho_n = |D_n| / sum |D_m| over the cohort, as the paper has it."""
    samples = state.samples[state.cohort].astype(np.float64)
    return samples / samples.sum()


def uniform(state):
    """The same for every client of the cohort."""
    return np.full(len(state.cohort), 1 / len(state.cohort))


RHO = {"size": size, "uniform": uniform}
