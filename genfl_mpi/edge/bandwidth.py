"""Divide the uplink's bandwidth among the clients of a round.

An allocation is a function (uplink) -> Hz, float64 (K,), of sum uplink.total.

t_n(b) = ready_n + S / R_n(b) with R_n(b) = b log2(1 + c_n / b) and c_n = p_n h_n / N0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from genfl_mpi.util.errors import UserError

MIN_VALUE = 0.1  # a client of value 0 gets this share of the bandwidth of one of value 1


class Uplink(NamedTuple):
    """One cohort's upload.

    bits: size S of each client's message. ready: s (K,), when each client starts to send. power: W (K,), p_n.
    reach: Hz (K,), c_n. total: Hz. deadline: s, or None. value: (K,) in [0, 1], of each client's labels and
    data.
    """

    bits: float
    ready: np.ndarray
    power: np.ndarray
    reach: np.ndarray
    total: float
    deadline: float | None = None
    value: np.ndarray | None = None


def seconds(uplink: Uplink, bandwidth: np.ndarray | float) -> np.ndarray:
    """Return the transmission time of each client's message, float64 (K,). bandwidth: Hz."""
    return uplink.bits * np.log(2) / (bandwidth * np.log1p(uplink.reach / bandwidth))


def equal(uplink: Uplink) -> np.ndarray:
    """Give every client the same share."""
    return np.full(len(uplink.ready), uplink.total / len(uplink.ready))


def proportional(uplink: Uplink) -> np.ndarray:
    """Divide in proportion to the time that each needs with an equal share, which evens out these times."""
    return _proportional_shares(uplink, seconds(uplink, equal(uplink)))


def weighted(uplink: Uplink) -> np.ndarray:
    """Divide in proportion to the value of each client's labels and data: valuable clients finish first."""
    assert uplink.value is not None
    return _proportional_shares(uplink, np.maximum(uplink.value, MIN_VALUE))


def min_max(uplink: Uplink) -> np.ndarray:
    """Minimize the finishing time: the unique division with which all clients finish at the same time T.

    sum b_n(T) = B is solved for T by Newton's method on 1 / sum b_n(T), which is nearly linear, inside a
    bracket. It starts at the time that the slowest client needs with the whole band: a client with a very
    poor channel determines T alone.
    """
    low = _infinite_band_finish(uplink).max()
    high = (uplink.ready + seconds(uplink, equal(uplink))).max()
    T = (uplink.ready + seconds(uplink, uplink.total)).max()
    for _ in range(100):
        needed = needed_bandwidth(uplink, T)
        total = needed.sum()
        low, high = (T, high) if total > uplink.total else (low, T)
        if abs(total / uplink.total - 1) < 1e-9 or high - low <= 1e-15 * high:
            break
        # b changes with r = S / (T - ready) by 1 / (dr/db), and r with T by -r / (T - ready).
        x = uplink.reach / needed
        per_hertz = (np.log1p(x) - x / (1 + x)) / np.log(2)
        falling = (uplink.bits / (T - uplink.ready) ** 2 / per_hertz).sum()  # -d(sum b)/dT
        T += (1 / uplink.total - 1 / total) * total**2 / falling
        if not low < T < high:
            T = (low + high) / 2
    return _proportional_shares(uplink, needed)


def _infinite_band_finish(uplink: Uplink) -> np.ndarray:
    """Return each client's finishing time in an infinitely wide band, s (K,): R -> c / ln 2."""
    return uplink.ready + uplink.bits * np.log(2) / uplink.reach


def needed_bandwidth(uplink: Uplink, T: float) -> np.ndarray:
    """Return b_n(T), Hz (K,): the bandwidth with which each client finishes at T, infinite if none suffices.

    In closed form: with r = S / (T - ready) and G = r ln 2 / c < 1, b = -r ln 2 / (W_{-1}(-G e^{-G}) + G).
    Near the branch point, where G is almost 1, this is c / b = 2 d + 8/3 d^2 + 28/9 d^3 with d = 1 - G.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        d = (T - _infinite_band_finish(uplink)) / (T - uplink.ready)
        series = 2 * d + 8 / 3 * d**2 + 28 / 9 * d**3
        G = np.minimum(uplink.bits * np.log(2) / (uplink.reach * (T - uplink.ready)), 1 - 1e-3)
        x = minus_lambert(G) / G - 1
        # One Newton step recovers the last digits.
        x = np.where(d > 1e-3, x - (np.log1p(x) - G * x) / (1 / (1 + x) - G), series)
        return np.where(_infinite_band_finish(uplink) < T, uplink.reach / x, np.inf)


def minus_lambert(G: np.ndarray) -> np.ndarray:
    """Return -W_{-1}(-G e^{-G}) for G in (0, 1): the root y > 1 of y - ln y = G - ln G.

    Newton's method starts at the lower bound of Chatzigeorgiou (2013), 1 + sqrt(2 c) + 2/3 c with c = G - ln
    G - 1. It is ten times as fast as SciPy's complex lambertw.
    """
    c = G - np.log(G) - 1
    y = 1 + np.sqrt(2 * c) + 2 / 3 * c
    for _ in range(4):
        y -= (y - np.log(y) - 1 - c) / (1 - 1 / y)
    return y


def least_energy(uplink: Uplink) -> np.ndarray:
    """Minimize the sum of transmission energies p_n S / R_n(b_n) subject to the deadline. Raises UserError.

    With x = c / b the energy is p S x / (c log2(1 + x)), and one more Hertz saves (p S / c^2) phi(x), with
    phi(x) = x^2 d/dx [x / log2(1 + x)], which increases. At the optimum one more Hertz saves the same
    everywhere, except where the deadline requires more bandwidth: phi is inverted by interpolation in a
    table, and the common level is the root of one equation.
    """
    if uplink.deadline is None:
        raise UserError(
            "allocation=least_energy needs deadline_s; set the time by which the clients must finish"
        )
    minimum = needed_bandwidth(uplink, uplink.deadline)
    if not minimum.sum() <= uplink.total:
        earliest = (uplink.ready + seconds(uplink, min_max(uplink))).max()
        raise UserError(
            f"deadline_s={uplink.deadline:g} cannot be met: the clients of a round finish after "
            f"{earliest:.4g} s at the earliest; raise deadline_s"
        )
    log_x = np.linspace(-12, 60, 200_000)
    once = np.log1p(np.exp(log_x))
    log_phi = 2 * log_x + np.log(np.log(2) * (once - np.exp(log_x) / (1 + np.exp(log_x)))) - 2 * np.log(once)
    log_scale = np.log(uplink.power) - 2 * np.log(uplink.reach)

    def bandwidth(level: float) -> np.ndarray:
        return np.maximum(uplink.reach * np.exp(-np.interp(level - log_scale, log_phi, log_x)), minimum)

    low, high = log_scale.min() + log_phi[0], log_scale.max() + log_phi[-1]
    from scipy.optimize import brentq  # imported late: it takes a second, which only such runs need

    level = brentq(lambda level: np.log(bandwidth(level).sum() / uplink.total), low, high)
    return np.maximum(_proportional_shares(uplink, bandwidth(level)), minimum)


def _proportional_shares(uplink: Uplink, parts: np.ndarray) -> np.ndarray:
    """Divide the whole bandwidth in proportion to `parts`. Raises UserError if they are not finite."""
    if not 0 < (whole := parts.sum()) < np.inf:
        raise UserError(
            "the bandwidth cannot be divided: the clients' channels are too poor or too good, with p h / N0 "
            f"from {uplink.reach.min():.3g} to {uplink.reach.max():.3g} Hz, the band {uplink.total:.3g} Hz; "
            "change the world's channel or hardware.transmit_watts"
        )
    return uplink.total * parts / whole


ALLOCATIONS = {
    "equal": equal,
    "proportional": proportional,
    "min_max": min_max,
    "least_energy": least_energy,
    "weighted": weighted,
}
