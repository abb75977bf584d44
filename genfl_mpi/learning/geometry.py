"""Lengths of models' updates and the angles between them, in float64."""

import math

import torch

BLOCK = 32768  # weights of which a cache holds what is computed with them


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
