"""Divide bandwidth, power and images among the vehicles of a round so that it ends as early as possible.

    minimize T  with  ready_n + t_n <= min(T, sojourn_n),  p_n t_n <= E_n,  p_n <= P_n,  sum b_n <= B

t_n = S / (b_n log2(1 + p_n h_n / (N0 b_n))). The server makes as many images as fit in the clients' shadow,
t_generate(m) + t_augment(m) <= T. This is the inner problem of generative federated learning in vehicular
networks (GenFV, Qiang, Chang and Min 2025), of which we know the abstract: the formulation is ours.

For a given T the most power that the energy allows, min(P_n, E_n / t_n), needs the least bandwidth, which
falls with T. So T is the root of sum b_n(T) = B.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from genfl_mpi.edge.bandwidth import Uplink, needed_bandwidth, seconds
from genfl_mpi.util.errors import UserError

LOWEST, HIGHEST = 1e-6, 1e9  # factors on a time or a power, between which a root is searched


class Vehicles(NamedTuple):
    """The vehicles of a round, float64 (K,).

    bits: S, of each message. ready: s, when each has trained. gain: h / N0, Hz/W. watts: P, the most power.
    joules: E, for sending. sojourn: s, when each leaves its cell.
    """

    bits: float
    ready: np.ndarray
    gain: np.ndarray
    watts: np.ndarray
    joules: np.ndarray
    sojourn: np.ndarray


class Server(NamedTuple):
    """The server's work: s to generate an image, s to train on one, and the images that it has already."""

    image_seconds: float
    augment_seconds: float
    pool: int


class Allocation(NamedTuple):
    """A division. seconds: T; bandwidth: Hz (K,); watts: (K,); finish: s (K,), inf for who cannot finish."""

    seconds: float
    bandwidth: np.ndarray
    watts: np.ndarray
    finish: np.ndarray


def images_in_shadow(server: Server, T: float) -> int:
    """Return how many images the server can make and train on, with its pool, until T."""
    left = T - server.pool * server.augment_seconds
    return max(0, int(left / (server.image_seconds + server.augment_seconds)))


def allocate(vehicles: Vehicles, band: float) -> Allocation:
    """Return the division with the earliest end. band: B in Hz.

    Raises UserError if the vehicles cannot all finish before they leave.
    """
    least = vehicles.ready + 1 / _fastest_rate(vehicles) * vehicles.bits

    def excess(T: float) -> float:
        return float(np.log(_needed(vehicles, T).sum() / band))

    latest = vehicles.sojourn.max() if np.isfinite(vehicles.sojourn).all() else HIGHEST * least.max()
    earliest = least.max() * (1 + 1e-9)
    if not np.isfinite(latest) or latest <= earliest or excess(latest) > 0:
        raise UserError(
            "the vehicles cannot all send before they leave their cells, or their energy does not suffice; "
            "select fewer, or those that stay longer"
        )
    T = earliest if excess(earliest) <= 0 else brentq(excess, earliest, latest, xtol=1e-12, rtol=1e-12)
    bandwidth = _needed(vehicles, T)
    bandwidth *= band / bandwidth.sum()
    return _finish(vehicles, bandwidth)


def allocate_equally(vehicles: Vehicles, band: float) -> Allocation:
    """Return the division into equal shares of the bandwidth, with the most power that the energy allows."""
    count = len(vehicles.ready)
    return _finish(vehicles, np.full(count, band / count))


def search_grid(vehicles: Vehicles, band: float, shares: int, levels: int) -> Allocation:
    """Return the best division on a grid, by trying all. For few vehicles.

    shares: the bandwidth is divided in multiples of band / shares. levels: of the power, equally spaced.
    """
    count = len(vehicles.ready)
    grid = band * np.arange(1, shares) / shares
    power = vehicles.watts[:, None, None] * np.arange(1, levels + 1) / levels
    send = vehicles.bits / _rate(grid[None, :, None], power, vehicles.gain[:, None, None])
    send = np.where(power * send <= vehicles.joules[:, None, None] * (1 + 1e-12), send, np.inf)
    best = send.argmin(2)
    finish = vehicles.ready[:, None] + np.take_along_axis(send, best[..., None], 2)[..., 0]
    finish = np.where(finish <= vehicles.sojourn[:, None], finish, np.inf)
    cuts = np.array(list(itertools.combinations(range(1, shares), count - 1)), dtype=np.int64)
    edges = np.hstack([np.zeros((len(cuts), 1), int), cuts, np.full((len(cuts), 1), shares)])
    parts = np.diff(edges, axis=1) - 1  # index of each vehicle's share in the grid
    ends = finish[np.arange(count), parts]
    chosen = parts[ends.max(1).argmin()]
    every = np.arange(count)
    watts = power[every, 0, best[every, chosen]]
    return Allocation(float(ends.max(1).min()), grid[chosen], watts, finish[every, chosen])


def _rate(bandwidth: np.ndarray, watts: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return b log2(1 + p h / (N0 b)), bit/s."""
    return bandwidth * np.log1p(watts * gain / bandwidth) / np.log(2)


def _fastest_rate(vehicles: Vehicles) -> np.ndarray:
    """Return each vehicle's rate in an infinitely wide band at full power, bit/s (K,)."""
    return vehicles.watts * vehicles.gain / np.log(2)


def _needed(vehicles: Vehicles, T: float) -> np.ndarray:
    """Return the least bandwidth with which each vehicle finishes by T and before it leaves, Hz (K,)."""
    end = np.minimum(T, vehicles.sojourn)
    sending = np.maximum(end - vehicles.ready, 1e-300)
    watts = np.minimum(vehicles.watts, vehicles.joules / sending)
    needed = np.empty(len(end))
    for n in range(len(end)):  # each vehicle has its own end
        one = slice(n, n + 1)
        reach = watts[one] * vehicles.gain[one]
        uplink = Uplink(vehicles.bits, vehicles.ready[one], watts[one], reach, 0.0)
        needed[n] = needed_bandwidth(uplink, end[n])[0]
    return needed


def _finish(vehicles: Vehicles, bandwidth: np.ndarray) -> Allocation:
    """Let every vehicle send with the most power that its energy allows."""
    watts = np.array([_most_power(vehicles, n, share) for n, share in enumerate(bandwidth.tolist())])
    uplink = Uplink(vehicles.bits, vehicles.ready, watts, watts * vehicles.gain, float(bandwidth.sum()))
    with np.errstate(divide="ignore"):
        finish = vehicles.ready + np.where(watts > 0, seconds(uplink, bandwidth), np.inf)
    finish = np.where(finish <= vehicles.sojourn * (1 + 1e-9), finish, np.inf)
    return Allocation(float(finish.max()), bandwidth, watts, finish)


def _most_power(vehicles: Vehicles, n: int, bandwidth: float) -> float:
    """Return the most power of vehicle n, W, whose energy for the message is within its limit; 0 if none is.

    The energy p S / R(p) grows with the power.
    """

    def excess(watts: float) -> float:
        rate = _rate(np.array(bandwidth), np.array(watts), vehicles.gain[n])
        return float(watts * vehicles.bits / rate - vehicles.joules[n])

    most = float(vehicles.watts[n])
    if excess(most) <= 0:
        return most
    lowest = most * LOWEST
    return 0.0 if excess(lowest) > 0 else float(brentq(excess, lowest, most, rtol=1e-14))
