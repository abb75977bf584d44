"""Cells of edge servers: where their base stations are, and which client belongs to which.

`world.cells` stations are spread evenly over the disc of radius `channel.radius_m`, on a sunflower spiral
(Vogel 1979), and clients uniformly. Each client belongs to the nearest station. A single station is in the
center.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.world import World

GOLDEN_ANGLE = np.pi * (3 - 5**0.5)


def stations(world: World) -> np.ndarray:
    """Return the places of the base stations, m, float64 (cells, 2)."""
    if world.cells == 1:
        return np.zeros((1, 2))
    number = np.arange(world.cells)
    radius = world.channel.radius_m * np.sqrt((number + 0.5) / world.cells)
    return _cartesian(radius, GOLDEN_ANGLE * number)


def places(world: World, clients: int) -> np.ndarray:
    """Return the places of the clients, m, float64 (clients, 2)."""
    radius = world.channel.radius_m * np.sqrt(streams.generator(world.seed, "position").random(clients))
    return _cartesian(radius, 2 * np.pi * streams.generator(world.seed, "position", 3).random(clients))


def nearest(world: World, clients: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each client's cell, int64 (clients,), and its distance to the station, m, float64 (clients,)."""
    apart = np.linalg.norm(places(world, clients)[:, None] - stations(world), axis=2)
    return apart.argmin(1), apart.min(1)


def _cartesian(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
