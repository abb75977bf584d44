"""Decide which clients of a cohort participate in an enforced world, and what each spends.

A client works until it is done, until the deadline, until its vehicle leaves the cell, until its battery is
empty, or until it drops out, whichever comes first. The server waits for all of them, but not beyond the
deadline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.edge import road
from genfl_mpi.edge.rounds import Price, cut_short
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.world import World

# Outcome of a round for a client: the column status of /clients.
AGGREGATED, LATE, OUTAGE, DROPOUT, BATTERY, DECLINED, NOT_FINITE, VOID = (
    b"aggregated",
    b"late",
    b"outage",
    b"dropout",
    b"battery",
    b"declined",
    b"not finite",
    b"void",
)
STATUS_DTYPE = "S16"
DEADLINE_RTOL = 1e-9  # allocation=min_max makes all clients finish together, up to rounding


def simulate_attendance(
    world: World, battery: np.ndarray, round: int, price: Price, spent: np.ndarray
) -> tuple[np.ndarray, Price]:
    """Return the status of each client, STATUS (K,), and the `Price` of what the cohort did.

    battery: float64 (N,), charge of all clients when the run began, J. round: counted from 0. price: the
    `Price` of the undisturbed round. spent: float64 (N,), energy that each client spent in earlier rounds, J.
    """
    seconds, joules = (
        np.array(list(phases.values())) for phases in (price.client_seconds, price.client_joules)
    )
    done, deadline = seconds.sum(0), world.deadline_s or np.inf
    luck, moment = streams.generator(world.seed, "dropout", round).random((2, len(spent)))[:, price.clients]
    silent = np.where(luck < world.dropout, moment * done, np.inf)
    limit = np.minimum(deadline, road.sojourn(world, len(spent), round)[price.clients])
    late = done > limit * (1 + DEADLINE_RTOL)
    end = np.minimum(np.where(late, limit, done), silent)
    parts = _completed_parts(seconds, np.where(end < done, end, np.inf))
    charge = np.maximum(battery - spent, 0)[price.clients]
    empty = (parts * joules).sum(0) > charge
    parts = np.where(empty, np.minimum(parts, _completed_parts(joules, charge)), parts)
    status = np.select(
        [empty, silent < np.minimum(done, limit), late, price.lost],
        [BATTERY, DROPOUT, LATE, OUTAGE],
        AGGREGATED,
    )
    waited = (parts * seconds).sum(0).max(initial=0)
    if np.isfinite(deadline) and (status != AGGREGATED).any():
        waited = deadline
    return status.astype(STATUS_DTYPE), cut_short(price, parts, waited)


def _completed_parts(amounts: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return the completed part of each phase, float64 (phases, K) in [0, 1], under a limit per client.

    amounts: (phases, K), what each phase takes; phases follow one another. limits: (K,), what is available in
    all.
    """
    left = limits - (np.cumsum(amounts, 0) - amounts)
    return np.clip(np.divide(left, amounts, out=np.where(left > 0, 1.0, 0.0), where=amounts > 0), 0, 1)
