"""How the uplink's bandwidth is divided over the clients of a round: (uplink) -> Hz, float64 (K,), of sum uplink.total.

t_n(b) = ready_n + S / R_n(b) with R_n(b) = b log2(1 + c_n / b) and c_n = p_n h_n / N0.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from genfl_mpi.util.errors import UserError

LEAST_VALUE = 0.1  # share that a client of no value has of the bandwidth of one of value 1


class Uplink(NamedTuple):
    """bits: that each client sends, S. ready: s (K,), when each begins to send. power: W (K,), p_n. reach: Hz (K,), c_n.
    total: Hz. deadline: s, or None. value: (K,) in [0, 1], of each client's labels and data."""

    bits: float
    ready: np.ndarray
    power: np.ndarray
    reach: np.ndarray
    total: float
    deadline: float | None = None
    value: np.ndarray | None = None


def seconds(uplink, bandwidth):
    """Time of each client's message, float64 (K,)."""
    return uplink.bits * np.log(2) / (bandwidth * np.log1p(uplink.reach / bandwidth))


def equal(uplink):
    """The same for each."""
    return np.full(len(uplink.ready), uplink.total / len(uplink.ready))


def proportional(uplink):
    """In proportion to the time that each would need with an equal share, which brings these times together."""
    return _shared(uplink, seconds(uplink, equal(uplink)))


def weighted(uplink):
    """In proportion to the value of each client's labels and data, so that the valuable ones are heard first."""
    return _shared(uplink, np.maximum(uplink.value, LEAST_VALUE))


def min_max(uplink):
    """The one division with which all are done at the same time T, the earliest possible.

    sum b_n(T) = B is solved for T by Newton's method on 1 / sum b_n(T), which is nearly straight, inside a bracket. It begins
    at what the worst client would need with the whole band: one that is hardly heard decides the time alone.
    """
    low = _never_before(uplink).max()
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
    return _shared(uplink, needed)


def _never_before(uplink):
    """When each would be done, s (K,), if it had an infinitely wide band: R -> c / ln 2."""
    return uplink.ready + uplink.bits * np.log(2) / uplink.reach


def needed_bandwidth(uplink, T):
    """b_n(T), Hz (K,): what each needs to be done at T, infinite if no bandwidth suffices.

    In closed form: with r = S / (T - ready) and G = r ln 2 / c < 1, b = -r ln 2 / (W_{-1}(-G e^{-G}) + G). Near the branch
    point, where G is almost 1, that is c / b = 2 d + 8/3 d^2 + 28/9 d^3 with d = 1 - G.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        d = (T - _never_before(uplink)) / (T - uplink.ready)
        series = 2 * d + 8 / 3 * d**2 + 28 / 9 * d**3
        G = np.minimum(uplink.bits * np.log(2) / (uplink.reach * (T - uplink.ready)), 1 - 1e-3)
        x = minus_lambert(G) / G - 1
        x = np.where(
            d > 1e-3, x - (np.log1p(x) - G * x) / (1 / (1 + x) - G), series
        )  # a step of Newton for the last digits
        return np.where(_never_before(uplink) < T, uplink.reach / x, np.inf)


def minus_lambert(G):
    """-W_{-1}(-G e^{-G}) for G in (0, 1): the root y > 1 of y - ln y = G - ln G, by Newton's method from the lower bound of
    Chatzigeorgiou (2013), 1 + sqrt(2 c) + 2/3 c with c = G - ln G - 1. Ten times as fast as SciPy's complex lambertw."""
    c = G - np.log(G) - 1
    y = 1 + np.sqrt(2 * c) + 2 / 3 * c
    for _ in range(4):
        y -= (y - np.log(y) - 1 - c) / (1 - 1 / y)
    return y


def least_energy(uplink):
    """The least sum of transmission energies p_n S / R_n(b_n) with which all are done by the deadline. Raises UserError.

    With x = c / b the energy is p S x / (c log2(1 + x)), and a Hertz more saves (p S / c^2) phi(x), with phi(x) = x^2 d/dx [x /
    log2(1 + x)], which rises. At the optimum a Hertz more saves the same everywhere, except where the deadline asks for more:
    phi is inverted by interpolation in a table, and the common level is the root of one equation.
    """
    if uplink.deadline is None:
        raise UserError(
            "allocation=least_energy needs deadline_s, the time by which the clients must be done"
        )
    least = needed_bandwidth(uplink, uplink.deadline)
    if not least.sum() <= uplink.total:
        earliest = (uplink.ready + seconds(uplink, min_max(uplink))).max()
        raise UserError(
            f"deadline_s={uplink.deadline:g} cannot be met: the clients of a round are done after {earliest:.4g} s "
            "at the earliest"
        )
    log_x = np.linspace(-12, 60, 200_000)
    once = np.log1p(np.exp(log_x))
    log_phi = 2 * log_x + np.log(np.log(2) * (once - np.exp(log_x) / (1 + np.exp(log_x)))) - 2 * np.log(once)
    log_scale = np.log(uplink.power) - 2 * np.log(uplink.reach)

    def bandwidth(level):
        return np.maximum(uplink.reach * np.exp(-np.interp(level - log_scale, log_phi, log_x)), least)

    low, high = log_scale.min() + log_phi[0], log_scale.max() + log_phi[-1]
    level = brentq(lambda level: np.log(bandwidth(level).sum() / uplink.total), low, high)
    return np.maximum(_shared(uplink, bandwidth(level)), least)


def _shared(uplink, parts):
    """Divide the whole bandwidth in proportion to `parts`. Raises UserError if these are not finite."""
    if not 0 < (whole := parts.sum()) < np.inf:
        raise UserError(
            "the clients' channels are too poor, or too good, for the bandwidth to be divided over them: their p h / N0 are "
            f"{uplink.reach.min():.3g} to {uplink.reach.max():.3g} Hz, and the band is {uplink.total:.3g} Hz; mend the "
            "world's channel or hardware.transmit_watts"
        )
    return uplink.total * parts / whole


ALLOCATIONS = {
    "equal": equal,
    "proportional": proportional,
    "min_max": min_max,
    "least_energy": least_energy,
    "weighted": weighted,
}
