"""The clients' models become one (III-D)."""

import numpy as np

from genfl_mpi.edge.attendance import NOT_FINITE, STATUS
from genfl_mpi.federation.algorithms.interface import Received
from genfl_mpi.federation.messages import MODEL, NO_RANK
from genfl_mpi.learning.weights import bound


def aggregate(server, omega, parameters, plan, reduction, resident):
    """The mean of the clients' models, and omega_fl, what the server's algorithm makes of it, float64 (size,); (None, None) if no member's
    update can be aggregated, because none was trained, or none of those with a weight is finite.

    omega: float32 (size,), the weights before the round; parameters: how many of them are parameters; plan: of the `Broadcast`
    message; reduction: as reduced, to which `resident` knows the sums. Where clients were dropped as not finite, the server's status
    says so and the others share their rho: the sum is scaled, and the plan's coefficients are replaced. Raises ArithmeticError if
    the sum may have overflowed.
    """
    trained, algorithm, config = plan["rank"] != NO_RANK, server.algorithm, server.config
    if not trained.any():
        return None, None
    bound(plan["rho"], reduction.of_clients("largest_weight"))
    sums = resident.received()
    total, kept = sums.pop(MODEL), np.isfinite(reduction.of_clients("update_norm"))
    if not kept[trained].all():
        server.status = np.where(trained & ~kept, NOT_FINITE, server.status).astype(STATUS)
        if not plan["rho"][kept].any():
            plan["rho"] = 0.0
            return None, None
        rho = np.where(kept, server.cohort.rho, 0)
        coefficients = algorithm.coefficients(server.cohort._replace(rho=rho / rho.sum()), config)
        total = total * (coefficients.sum() / plan["rho"][kept].sum())  # both are in the same proportions
        plan["rho"] = coefficients
    received = Received(total, plan["rho"].sum(), sums, parameters)
    average = algorithm.average(omega, received, config)
    return average, algorithm.aggregate(server.memory, omega, average, received, config)
