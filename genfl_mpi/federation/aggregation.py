"""Aggregation: the clients' models become one (III-D)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.edge.attendance import NOT_FINITE, STATUS_DTYPE
from genfl_mpi.federation.algorithms.interface import Received
from genfl_mpi.federation.messages import MODEL, NO_RANK, RHO
from genfl_mpi.learning.weights import check_sum

if TYPE_CHECKING:
    import torch

    from genfl_mpi.federation.parts import Messages
    from genfl_mpi.federation.server import Server


def aggregate(
    server: Server,
    omega: torch.Tensor,
    parameters: int,
    messages: Messages,
    sums: dict[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the mean of the clients' models, and omega_fl, what the algorithm makes of it: float64 (size,).

    (None, None) if no update can be aggregated, because no client trained, or none with a weight is finite.
    (None, omega^t) if the round is void.
    omega: float32 (size,), omega^t; parameters: how many of the weights are parameters; messages: as reduced.
    sums: replaces what the resident buffers received.

    If clients were dropped as not finite, the server's status records them. The others share their rho, and
    with rho.over=selected also that of clients that a world excluded: the sum is scaled accordingly, and the
    plan's coefficients are replaced. Raises ArithmeticError if the sum may have overflowed.
    """
    plan, reduction = messages.broadcast.plan, messages.reduction
    trained, algorithm, config = plan["rank"] != NO_RANK, server.algorithm, server.config
    kept = np.isfinite(reduction.client_column("update_norm"))
    server.status = np.where(trained & ~kept, NOT_FINITE, server.status).astype(STATUS_DTYPE)
    if server.private:
        received = _private_sum(server, omega, parameters, messages, kept)
        return received.model, algorithm.aggregate(server.memory, omega, received.model, received, config)
    if server.is_void or not trained.any():
        plan["rho"] = 0.0
        return (None, omega.double()) if server.is_void else (None, None)
    check_sum(plan["rho"], reduction.client_column("largest_weight"))
    sums = messages.resident.received() if sums is None else sums
    total, summed_rho = sums.pop(MODEL), sums.pop(RHO, None)
    # With rho.over=selected, also the clients that did not train have a share.
    missing = not kept[trained | (plan["rho"] > 0)].all()
    if missing and not (kept.any() if config.uses_slices else plan["rho"][kept].any()):
        plan["rho"] = 0.0
        return None, None
    if missing and not config.uses_slices:  # a combination leaves them out itself
        rho = np.where(kept, server.cohort.rho, 0)
        coefficients = algorithm.coefficients(server.cohort._replace(rho=rho / rho.sum()), config)
        # The old and the new coefficients are in the same proportions.
        before = plan["rho"][kept].sum() if summed_rho is None else summed_rho.item()
        total = total * (coefficients.sum() / before)
        plan["rho"] = coefficients
    received = Received(total, plan["rho"].sum(), sums, parameters)
    average = algorithm.average(omega, received, config)
    return average, algorithm.aggregate(server.memory, omega, average, received, config)


def _private_sum(
    server: Server, omega: torch.Tensor, parameters: int, messages: Messages, kept: np.ndarray
) -> Received:
    """Return omega^t plus the noisy mean update. kept: bool (cohort,), finite; the others as in `aggregate`.

    A void round, or one without a client, releases noise alone.
    """
    plan = messages.broadcast.plan
    assert server.private
    is_empty = server.is_void or (plan["rank"] == NO_RANK).all()
    plan["rho"] = np.where(kept & (not is_empty), plan["rho"], 0.0)
    sums = None if is_empty else messages.resident.received()
    return Received(server.private.average(server.state.round, omega, sums), 1.0, {}, parameters)
