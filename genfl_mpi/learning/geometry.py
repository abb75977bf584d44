"""Norms of model updates and angles between them, in float64."""

from __future__ import annotations

import math

import numpy as np
import torch

BLOCK = 32768  # weights processed at a time, few enough that the intermediate results stay in the cache


def distance(one: torch.Tensor, other: torch.Tensor, parameters: int) -> float:
    """Compute the Euclidean distance of the parameters of two models, in float64."""
    return math.sqrt(_dot(one, one, other, parameters))


def cosine(one: torch.Tensor, other: torch.Tensor, before: torch.Tensor, parameters: int) -> float:
    """Compute the cosine between two models' updates since `before`; NaN if an update is zero."""
    product = math.sqrt(_dot(one, one, before, parameters) * _dot(other, other, before, parameters))
    return _dot(one, other, before, parameters) / product if product else math.nan


def _dot(one: torch.Tensor, other: torch.Tensor, before: torch.Tensor, parameters: int) -> float:
    """Compute the dot product of two models' updates since `before`, in float64.

    Works block by block: on whole vectors, memory traffic would take most of the time.
    """
    total = 0.0
    for start in range(0, parameters, BLOCK):
        block = slice(start, min(start + BLOCK, parameters))
        since = before[block].double()
        change = one[block].double() - since
        total += torch.dot(change, change if other is one else other[block].double() - since).item()
    return total


def mean_cosine(rho: np.ndarray, norms: np.ndarray, norm_of_sum: float) -> float:
    """Compute the mean cosine between the updates of different clients.

    A pair has the weight rho_i |Delta_i| rho_j |Delta_j|. Follows from |sum rho Delta|^2 = sum rho_i^2
    |Delta_i|^2 + sum over pairs of rho_i rho_j Delta_i Delta_j, so that no client's update needs to be sent.
    rho, norms: float64 (cohort,); norm_of_sum: |sum rho Delta|. NaN for a cohort of one.
    """
    parts = rho * norms
    pairs = parts.sum() ** 2 - (parts**2).sum()
    return (norm_of_sum**2 - (parts**2).sum()) / pairs if pairs > 0 else math.nan
