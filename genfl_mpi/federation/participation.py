"""The cohort of a round: who is chosen, who of them declines, and who will be heard."""

import numpy as np

from genfl_mpi.config import functions
from genfl_mpi.edge.attendance import AGGREGATED, STATUS
from genfl_mpi.util.errors import UserError


def choose(select, state):
    """The clients of the round that begins, int (cohort,), in rising order, and who of them does not decline, bool (cohort,).

    select: the selection policy; state: the `ServerState` of which it is asked. If too few take part for the pay, others are
    asked in vain. Raises UserError if the policy's answer is no cohort.
    """
    size, clients, available = state.config.cohort, state.config.clients, state.available
    if available is not None and available.sum() <= size:
        cohort = np.sort(np.argsort(~available, kind="stable")[:size])
        return cohort, available[cohort]
    chosen, name = np.asarray(select(state)), f"the selection policy {functions.of(select)}"
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
        raise UserError(f"{name} must return {size} client ids, integers, not {chosen}")
    cohort = np.unique(chosen)
    if len(cohort) != size or len(chosen) != size or cohort[0] < 0 or cohort[-1] >= clients:
        raise UserError(f"{name} must return {size} distinct clients of {clients}, not {chosen}")
    if available is not None and not available[cohort].all():
        raise UserError(
            f"{name} chose client {cohort[~available[cohort]][0]}, which does not take part for the "
            "pay: it must keep to state.available"
        )
    return cohort, np.ones(size, dtype=bool)


def attend(around, round, cohort, *known, **images):
    """What becomes of a cohort in a round, STATUS (cohort,). around: the run's `Surroundings`, or None without a world; the
    rest as in its `attend`."""
    if around is None:
        return np.full(len(cohort), AGGREGATED, STATUS)
    return around.attend(round, cohort, *known, **images)


def payments(config, status, round, told, owed):
    """What the server pays for a round, in J: config.incentive.base to each client whose model was aggregated, and what it was
    owed for its images; in the first one, round 1, config.incentive.labels to each of so many that told their labels. status:
    STATUS (cohort,); owed: float64 (cohort,), or 0."""
    settings = config.incentive
    return ((status == AGGREGATED) * ((settings.base or 0.0) + owed)).sum() + (
        settings.labels or 0.0
    ) * told * (round == 1)
