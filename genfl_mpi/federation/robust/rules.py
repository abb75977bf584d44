"""Robust aggregation rules: plain functions of a few arrays, independent of MPI, ranks and devices.

A rule of COORDINATE_RULES combines the members' values of each coordinate. A rule of COEFFICIENT_RULES
returns coefficients a_n of the members' updates, omega_fl = omega^t + sum_n a_n (omega_n - omega^t). It needs
only the updates' Gram matrix, G_nm = <Delta_n, Delta_m>, from which every distance between combinations of
updates follows. All members count equally; their order is that of their ids, and ties go to the lowest id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genfl_mpi.config.sections.adversity import assumed_attackers

if TYPE_CHECKING:
    from genfl_mpi.config.sections.adversity import Defence

DIGITS = 12  # scores that differ only below this digit of the largest are equal
SMOOTHING = 1e-6  # of RFA: smallest distance that a member counts with (Pillutla et al. 2022, nu)
MAX_ITERATIONS = 1000  # of RFA
TOLERANCE = 1e-10  # of RFA: largest change of a coefficient in the last iteration


class Coefficients(NamedTuple):
    """The members' shares in the aggregate.

    updates: float64 (K,), factor of each update. rho: float64 (K,), weight of each member, with sum 1, or 0
    for all if no member is trusted.
    """

    updates: np.ndarray
    rho: np.ndarray


def median(values: np.ndarray, defence: Defence) -> np.ndarray:
    """Return the median of each column (Yin et al. 2018). values: float64 (K, n)."""
    ordered, members = np.sort(values, axis=0), len(values)
    return (ordered[(members - 1) // 2] + ordered[members // 2]) / 2


def trimmed_mean(values: np.ndarray, defence: Defence) -> np.ndarray:
    """Return each column's mean without its b largest and smallest values (Yin et al. 2018).

    values: float64 (K, n). b: the assumed attackers, but at least one value is kept.
    """
    members = len(values)
    cut = min(assumed_attackers(defence, members), (members - 1) // 2)
    return np.sort(values, axis=0)[cut : members - cut].mean(0)


def norm_clipping(gram: np.ndarray, defence: Defence) -> Coefficients:
    """Average the updates, scaled down to the norm S if they are longer (Sun et al. 2019)."""
    norms = np.sqrt(gram.diagonal())
    return _clipped(_shrink(norms, _bound(norms, defence)) / len(gram))


def centred_clipping(gram: np.ndarray, defence: Defence) -> Coefficients:
    """Move a centre v, repeatedly, by the mean of the differences to it, clipped (Karimireddy et al. 2021).

    v <- v + 1/K sum_n (Delta_n - v) min(1, S / |Delta_n - v|), from v = 0, which is omega^t.
    """
    centre = np.zeros(len(gram))
    bound = _bound(np.sqrt(gram.diagonal()), defence)
    for _ in range(defence.iterations):
        pull = _shrink(distances(gram, centre), bound) / len(gram)
        centre = centre * (1 - pull.sum()) + pull
    return _clipped(centre)


def krum(gram: np.ndarray, defence: Defence) -> Coefficients:
    """Take the update with the lowest score (Blanchard et al. 2017)."""
    return _mean_of(krum_order(gram, assumed_attackers(defence, len(gram)))[:1], len(gram))


def multi_krum(gram: np.ndarray, defence: Defence) -> Coefficients:
    """Average the K - f updates with the lowest scores (Blanchard et al. 2017)."""
    assumed = assumed_attackers(defence, len(gram))
    return _mean_of(krum_order(gram, assumed)[: len(gram) - assumed], len(gram))


def krum_order(gram: np.ndarray, assumed: int) -> np.ndarray:
    """Order the members by Krum's score, the sum of the squared distances to the K - f - 2 closest others.

    assumed: f. Returns int (K,).
    """
    members, norms = len(gram), gram.diagonal()
    squares = np.maximum(norms[:, None] + norms - 2 * gram, 0)
    np.fill_diagonal(squares, -1)  # first in each row
    scores = np.sort(squares, axis=1)[:, 1 : max(2, members - assumed - 1)].sum(1)
    largest = scores.max()
    return np.argsort(np.round(scores / largest, DIGITS) if largest > 0 else scores, kind="stable")


def geometric_median(gram: np.ndarray, defence: Defence) -> Coefficients:
    """Minimise the sum of the distances to all updates, by the smoothed Weiszfeld iteration of RFA."""
    members = len(gram)
    shares = np.full(members, 1 / members)
    for _ in range(MAX_ITERATIONS):
        weights = 1 / np.maximum(distances(gram, shares), SMOOTHING)
        before, shares = shares, weights / weights.sum()
        if np.abs(shares - before).max() < TOLERANCE:
            break
    return Coefficients(shares, shares)


def fltrust(gram: np.ndarray, defence: Defence) -> Coefficients:
    """Average the updates, rescaled to the root's norm, by TS_n = max(0, cos(Delta_n, Delta_0)).

    Cao et al. 2021. The last row and column of the Gram matrix are those of the root's update Delta_0. If no
    member is trusted, or there is no root, all coefficients are 0.
    """
    norms, root = np.sqrt(gram.diagonal()[:-1]), np.sqrt(gram[-1, -1])
    product = norms * root
    trust = np.divide(np.maximum(gram[:-1, -1], 0), product, out=np.zeros_like(norms), where=product > 0)
    if not trust.any():
        return Coefficients(trust, trust)
    shares = trust / trust.sum()
    return Coefficients(np.divide(shares * root, norms, out=np.zeros_like(norms), where=norms > 0), shares)


def distances(gram: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return the distance of every update to the combination of updates with these coefficients: (K,)."""
    product = gram @ centre
    return np.sqrt(np.maximum(gram.diagonal() - 2 * product + centre @ product, 0))


def _bound(norms: np.ndarray, defence: Defence) -> float:
    return float(np.median(norms)) if defence.norm is None else defence.norm


def _shrink(norms: np.ndarray, bound: float) -> np.ndarray:
    """Return min(1, bound / norm)."""
    return np.divide(bound, norms, out=np.ones_like(norms), where=norms > bound)


def _clipped(updates: np.ndarray) -> Coefficients:
    total = updates.sum()
    return Coefficients(updates, updates / total if total > 0 else np.zeros_like(updates))


def _mean_of(chosen: np.ndarray, members: int) -> Coefficients:
    shares = np.zeros(members)
    shares[chosen] = 1 / len(chosen)
    return Coefficients(shares, shares)


COORDINATE_RULES: dict[str, Callable[[np.ndarray, Defence], np.ndarray]] = {
    "median": median,
    "trimmed_mean": trimmed_mean,
}
COEFFICIENT_RULES: dict[str, Callable[[np.ndarray, Defence], Coefficients]] = {
    "norm_clipping": norm_clipping,
    "centred_clipping": centred_clipping,
    "krum": krum,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
    "fltrust": fltrust,
}
ROOTED = ("fltrust",)  # rules whose Gram matrix includes the root
