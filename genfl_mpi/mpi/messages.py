"""The two messages of a round, each one flat buffer. Their size does not depend on the number of clients.

Down, from rank 0 to all: the weights, and who trains what. Up, from all to rank 0: the exact sum of the trained
weights, and a row of figures for each member of the cohort and for each rank. The rows ride in the same integer sum:
every row is written, as the bits of float64, by one rank and is zero on all others.
"""

import numpy as np

CLIENT_FIELDS = ("samples", "loss_first_epoch", "loss_last_epoch", "start_seconds", "seconds", "rank")
RANK_FIELDS = ("train_seconds", "wait_seconds")


class Down:
    """weights: float32 (size,). plan: a record (client, rank, rho) for each member of the cohort."""

    def __init__(self, size, cohort):
        plan = np.dtype([("rho", np.float64), ("client", np.int32), ("rank", np.int32)])
        self.buffer = np.zeros(size * 4 + cohort * plan.itemsize + 8, dtype=np.uint8)
        split = -(-size * 4 // 8) * 8  # the plan's float64 want an address divisible by 8
        self.weights = self.buffer[: size * 4].view(np.float32)
        self.plan = self.buffer[split : split + cohort * plan.itemsize].view(plan)


class Up:
    """units: int64 (size,). clients: float64 (cohort, fields), ranks: float64 (ranks, fields)."""

    def __init__(self, size, cohort, ranks):
        clients, per_rank = cohort * len(CLIENT_FIELDS), ranks * len(RANK_FIELDS)
        self.buffer = np.zeros(size + clients + per_rank, dtype=np.int64)
        self.units = self.buffer[:size]
        self.clients = self.buffer[size : size + clients].view(np.float64).reshape(cohort, len(CLIENT_FIELDS))
        self.ranks = self.buffer[size + clients :].view(np.float64).reshape(ranks, len(RANK_FIELDS))

    def clear(self):
        self.buffer[:] = 0
