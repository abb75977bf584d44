"""Who of a round's cohort is heard in a world that acts on the run, and what each has spent until then.

A client works until it is done, until the deadline, until its battery is empty, or until it drops out, whichever comes first. The
server waits for all; once the deadline is over it goes on without the others.
"""

import numpy as np

from genfl_mpi.edge.rounds import until
from genfl_mpi.util import streams

# What became of a client in a round: status in /clients.
AGGREGATED, LATE, OUTAGE, DROPOUT, BATTERY, DECLINED, NOT_FINITE = (
    b"aggregated",
    b"late",
    b"outage",
    b"dropout",
    b"battery",
    b"declined",
    b"not finite",
)
STATUS = "S16"
SLACK = 1e-9  # relative: allocation=min_max lets all be done at the same time, up to its rounding


def attend(world, battery, round, price, spent):
    """(status of each client, STATUS (K,); the `Price` of what the cohort did) in round `round`, of which the first is 0.

    battery: float64 (N,), J of all clients when the run began; spent: float64 (N,), J of each in the rounds before; price: the
    `Price` of the round if nothing came in between.
    """
    seconds, joules = (
        np.array(list(phases.values())) for phases in (price.client_seconds, price.client_joules)
    )
    done, deadline = seconds.sum(0), world.deadline_s or np.inf
    luck, moment = streams.generator(world.seed, "dropout", round).random((2, len(spent)))[:, price.clients]
    silent = np.where(luck < world.dropout, moment * done, np.inf)
    late = done > deadline * (1 + SLACK)
    end = np.minimum(np.where(late, deadline, done), silent)
    parts = _reached(seconds, np.where(end < done, end, np.inf))
    charge = np.maximum(battery - spent, 0)[price.clients]
    empty = (parts * joules).sum(0) > charge
    parts = np.where(empty, np.minimum(parts, _reached(joules, charge)), parts)
    status = np.select(
        [empty, silent < np.minimum(done, deadline), late, price.lost],
        [BATTERY, DROPOUT, LATE, OUTAGE],
        AGGREGATED,
    )
    waited = (parts * seconds).sum(0).max(initial=0)
    if np.isfinite(deadline) and (status != AGGREGATED).any():
        waited = deadline
    return status.astype(STATUS), until(price, parts, waited)


def _reached(amounts, most):
    """Which part of each phase is done, float64 (phases, K) in [0, 1], when they come one after another, take these `amounts`,
    (phases, K), and there is no more than `most`, (K,), of it."""
    left = most - (np.cumsum(amounts, 0) - amounts)
    return np.clip(np.divide(left, amounts, out=np.where(left > 0, 1.0, 0.0), where=amounts > 0), 0, 1)
