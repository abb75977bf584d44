"""The two messages of a round, each one flat buffer. Their size does not depend on the number of clients.

SCAFFOLD adds the server's control variate to the one and the sum of the clients' changes of theirs to the other.

Down, from rank 0 to all: the weights, who trains what, and whether to leave. Up, from all to rank 0: the exact sum of the
trained weights, and a row of figures for each member of the cohort and for each rank. The rows ride in the same integer sum:
every row is written, as the bits of float64, by one rank and is zero on all others.
"""

import numpy as np

CLIENT_FIELDS = ("samples", "loss_first_epoch", "loss_last_epoch", "accuracy_last_epoch", "update_norm", "largest_weight",
                 "start_seconds", "seconds", "rank")
NOBODY = -1  # the rank that trains a client which is not heard
RANK_FIELDS = ("train_seconds", "wait_seconds", "leave")


class Down:
    """weights: float32 (size,). variate: float32 (variate,). plan: a record (rho, client, rank, since, epochs) for each
    member of the cohort, the rank being NOBODY for who is not heard; since: the round in which it trained last, 0 for never;
    epochs: of its local training. head: a record of the rounds finished, and of the exit status with which all leave, or 0.
    zeros: makes the memory."""

    def __init__(self, size, cohort, variate=0, zeros=np.zeros):
        plan = np.dtype([("rho", np.float64), ("client", np.int32), ("rank", np.int32), ("since", np.int32), ("epochs", np.int32)])
        both = size + variate
        head = np.dtype([("round", np.int64), ("leave", np.int64)])
        self.buffer = zeros(both * 4 + cohort * plan.itemsize + head.itemsize + 8, np.uint8)
        split = -(-both * 4 // 8) * 8  # the plan's float64 want an address divisible by 8
        self.weights = self.buffer[: size * 4].view(np.float32)
        self.variate = self.buffer[size * 4 : both * 4].view(np.float32)
        self.head = self.buffer[split : split + head.itemsize].view(head)[0]
        split += head.itemsize
        self.plan = self.buffer[split : split + cohort * plan.itemsize].view(plan)


class Up:
    """units: int64 (size,), variate_units: int64 (variate,). clients: float64 (cohort, fields), ranks: float64 (ranks, fields).
    outputs: float64 (cohort, outputs), of which the rows ride like those of clients: how the biases of its model's last layer
    changed, where that is asked. zeros: makes the memory."""

    def __init__(self, size, cohort, ranks, variate=0, outputs=0, zeros=np.zeros):
        clients, per_rank, both = cohort * len(CLIENT_FIELDS), ranks * len(RANK_FIELDS), size + variate
        self.buffer = zeros(both + clients + per_rank + cohort * outputs, np.int64)
        self.units, self.variate_units = self.buffer[:size], self.buffer[size:both]
        self.clients = self.buffer[both : both + clients].view(np.float64).reshape(cohort, len(CLIENT_FIELDS))
        both += clients
        self.ranks = self.buffer[both : both + per_rank].view(np.float64).reshape(ranks, len(RANK_FIELDS))
        self.outputs = self.buffer[both + per_rank :].view(np.float64).reshape(cohort, outputs)

    def of_clients(self, field):
        """float64 (cohort,): one of CLIENT_FIELDS."""
        return self.clients[:, CLIENT_FIELDS.index(field)]

    def of_ranks(self, field):
        """float64 (ranks,): one of RANK_FIELDS."""
        return self.ranks[:, RANK_FIELDS.index(field)]

    def complete(self):
        """Whether every client of the cohort was trained, as far as the rows of all ranks are here: who was has samples."""
        return self.of_clients("samples").all()

    def excuse(self, absent, samples):
        """Fill the rows of clients that nobody trains. absent: bool (cohort,); samples: int (cohort,), of each client."""
        self.clients[absent] = np.nan
        for name, values in (("samples", samples[absent]), ("largest_weight", 0.0), ("seconds", 0.0), ("rank", NOBODY)):
            self.of_clients(name)[absent] = values

    def clear(self):
        self.buffer[:] = 0
