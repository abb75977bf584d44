"""Vehicles on a ring road of cells: where they are, and how long they stay in a cell.

Each cell covers `coverage_m` of the road and has its base station in the middle, `lateral_m` beside it.
Vehicles start uniformly distributed and drive at a constant speed, each at its own; `round_seconds` pass
between two rounds. A client that has not finished when its vehicle leaves the cell does not take part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.world import World


def speeds(world: World, clients: int) -> np.ndarray:
    """Return the speed of each vehicle, m/s, float64 (clients,)."""
    low, high = world.road.speed_mps
    return streams.generator(world.seed, "position", 2).uniform(low, high, clients)


def places(world: World, clients: int, round: int) -> np.ndarray:
    """Return how far each vehicle has come in its cell before a round, m, float64 (clients,).

    round: counted from 0. The road must have a coverage.
    """
    road = world.road
    assert road.coverage_m is not None
    start = streams.generator(world.seed, "position", 1).random(clients) * road.coverage_m
    driven = speeds(world, clients) * world.channel.round_seconds * round
    return (start + driven) % road.coverage_m


def distances(world: World, clients: int, round: int) -> np.ndarray:
    """Return the distance of each vehicle to its base station before a round, m, float64 (clients,)."""
    assert world.road.coverage_m is not None
    along = places(world, clients, round) - world.road.coverage_m / 2
    return np.maximum(np.hypot(along, world.road.lateral_m), world.channel.nearest_m)


def sojourn(world: World, clients: int, round: int) -> np.ndarray:
    """Return how long each vehicle stays in its cell from the start of a round on, s, float64 (clients,).

    That is the remaining coverage over the speed, and infinite without a road.
    """
    if world.road.coverage_m is None:
        return np.full(clients, np.inf)
    return (world.road.coverage_m - places(world, clients, round)) / speeds(world, clients)
