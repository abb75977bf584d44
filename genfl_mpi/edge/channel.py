"""Model the radio channel between clients and base station: positions, gains, rates and packet errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.edge import cells, road
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.world import Channel, World

UP, DOWN = 0, 1  # direction, part of the key of the fading's draws


def distances(world: World, clients: int, round: int) -> np.ndarray:
    """Return the distance of each client to its base station before a round, m, float64 (clients,).

    round: counted from 0. On a road it is that of `road.distances`, and with several cells that of
    `cells.nearest`. Otherwise clients start uniformly
    distributed in the cell and move in straight lines at one speed, each in a direction of its own, reflected
    at the border. A reflected path consists of chords of equal length: with m the distance of a chord from
    the center and s the position relative to its middle, r^2 = m^2 + s^2, and s grows with time modulo the
    chord. The distribution stays uniform.
    """
    if world.road.coverage_m is not None:
        return road.distances(world, clients, round)
    settings = world.channel
    if world.cells > 1:
        return np.maximum(cells.nearest(world, clients)[1], settings.nearest_m)
    rng = streams.generator(world.seed, "position")
    start = settings.radius_m * np.sqrt(rng.random(clients))
    if settings.speed_mps:
        angle = 2 * np.pi * rng.random(clients)  # between the direction and the radius
        apart, along = start * np.sin(angle), start * np.cos(angle)
        half = np.sqrt(np.maximum(settings.radius_m**2 - apart**2, 1e-12))
        along = (along + _traveled(settings, round) + half) % (2 * half) - half
        start = np.hypot(apart, along)
    return np.maximum(start, settings.nearest_m)


def _traveled(settings: Channel, round: int) -> float:
    """Return the distance that a client has moved before a round, m."""
    return settings.speed_mps * settings.round_seconds * round


def path_loss_db(distance: np.ndarray | float, settings: Channel) -> np.ndarray:
    """Return the path loss in dB. distance: m. settings: world.channel.

    By default it is 128.1 + 37.6 log10(d / km) (3GPP TR 36.814, urban macro cell at 2 GHz).
    """
    return settings.path_loss_db + settings.path_loss_slope_db * np.log10(distance / 1000)


def shadowing_db(world: World, clients: int, round: int) -> np.ndarray:
    """Return the log-normal shadowing in dB, float64 (clients,).

    It is constant for a client that does not move. Along a path it turns from one normal draw to the next
    within `decorrelation_m`, weighted by cosine and sine, which keeps its variance constant.
    """
    settings = world.channel
    place, between = divmod(_traveled(settings, round) / settings.decorrelation_m, 1)
    one, other = (
        streams.generator(world.seed, "shadowing", int(place + step)).standard_normal(clients)
        for step in (0, 1)
    )
    return settings.shadowing_db * (np.cos(np.pi / 2 * between) * one + np.sin(np.pi / 2 * between) * other)


def gains(world: World, clients: int, round: int, direction: int) -> np.ndarray:
    """Return the received fraction of the transmitted power, float64 (clients,). direction: UP or DOWN."""
    loss = path_loss_db(distances(world, clients, round), world.channel) + shadowing_db(world, clients, round)
    gain = 10 ** (-loss / 10)
    if world.channel.fading == "rayleigh":
        gain *= streams.generator(world.seed, "fading", round, direction).exponential(size=clients)
    return gain


def noise(settings: Channel) -> float:
    """Return the noise density N0 in W/Hz. settings: world.channel."""
    return 10 ** (settings.noise_dbm_hz / 10 - 3)


def rate(
    bandwidth: np.ndarray | float, power: np.ndarray | float, gain: np.ndarray | float, noise: float
) -> np.ndarray:
    """Return R = b log2(1 + p h / (N0 b)) in bit/s (Shannon). bandwidth: Hz; power: W; noise: W/Hz."""
    return bandwidth * np.log1p(power * gain / (noise * bandwidth)) / np.log(2)


def packet_error(
    bandwidth: np.ndarray | float,
    power: np.ndarray | float,
    gain: np.ndarray | float,
    noise: float,
    waterfall: float,
) -> np.ndarray:
    """Return the packet error 1 - exp(-m N0 b / (p h)) (Xi et al. 2011; Chen et al. 2021). waterfall: m."""
    return -np.expm1(-waterfall * noise * bandwidth / (power * gain))


def transmissions(luck: np.ndarray, error: np.ndarray, limit: int) -> np.ndarray:
    """Return how often each message is sent until it arrives, float64 (K,).

    The number is geometric in 1 - `error`, and at most `limit`. luck: float64 (K,), uniform in [0, 1): P(more
    than k) = error^k.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # an error of 0, or rounded to 1
        tries = np.clip(1 + np.floor(np.log1p(-luck) / np.log(error)), 1, limit)
    return np.where(never_arrives(luck, error, limit), limit, tries)


def never_arrives(luck: np.ndarray, error: np.ndarray, limit: int) -> np.ndarray:
    """Return whether all `limit` transmissions of each message are lost, bool (K,), for the same luck."""
    return 1 - luck <= error**limit
