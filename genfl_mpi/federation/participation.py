"""The cohort of a round: which clients are chosen, which of them decline, and which are aggregated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.config import functions
from genfl_mpi.edge.attendance import AGGREGATED, STATUS_DTYPE
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.policies import Policy, ServerState
    from genfl_mpi.federation.simulated_world import SimulatedWorld


def choose(select: Policy, state: ServerState) -> tuple[np.ndarray, np.ndarray]:
    """Choose the clients of the next round.

    Returns int (cohort,), in ascending order, and whether each participates, bool (cohort,). select: the
    selection policy; with `poisson` the size varies. state: the `ServerState` it is called with. If fewer
    clients than the cohort size participate for the payment, the cohort is filled up with clients that
    decline. Raises UserError if the policy does not return a cohort.
    """
    size, clients, available = state.config.cohort, state.config.clients, state.available
    if available is not None and available.sum() <= size:
        cohort = np.sort(np.argsort(~available, kind="stable")[:size])
        return cohort, available[cohort]
    if state.config.selection.policy == "poisson":
        size = len(cohort := np.asarray(select(state)))
        return cohort, np.ones(size, dtype=bool)
    chosen, name = np.asarray(select(state)), f"the selection policy {functions.name_of(select)}"
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
        raise UserError(f"{name} must return {size} client ids, integers, not {chosen}")
    cohort = np.unique(chosen)
    if len(cohort) != size or len(chosen) != size or cohort[0] < 0 or cohort[-1] >= clients:
        raise UserError(f"{name} must return {size} distinct clients of {clients}, not {chosen}")
    if available is not None and not available[cohort].all():
        raise UserError(
            f"{name} chose client {cohort[~available[cohort]][0]}, which does not participate for the "
            "payment; choose only clients in state.available"
        )
    return cohort, np.ones(size, dtype=bool)


def attend(
    world: SimulatedWorld | None, round: int, cohort: np.ndarray, *args: Any, **images: Any
) -> np.ndarray:
    """Return the status of each client of a cohort in a round, STATUS (cohort,).

    world: the run's, or None. args, images: as in `SimulatedWorld.attend`.
    """
    if world is None:
        return np.full(len(cohort), AGGREGATED, STATUS_DTYPE)
    return world.attend(round, cohort, *args, **images)


def payments(
    config: Config, status: np.ndarray, round: int, sharing: int, owed: np.ndarray | float
) -> np.floating | float:
    """Return what the server pays for a round, in J.

    It pays config.incentive.base and what it owes for images to each client whose model was aggregated, and
    in round 1 config.incentive.labels to each of the `sharing` clients that shared their labels. status:
    STATUS (cohort,); owed: float64 (cohort,), or 0.
    """
    settings = config.incentive
    return ((status == AGGREGATED) * ((settings.base or 0.0) + owed)).sum() + (
        settings.labels or 0.0
    ) * sharing * (round == 1)
