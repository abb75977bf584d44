"""The two messages of a round, each one flat buffer: named arrays that rank 0 broadcasts, and named sums that are reduced to it.

Their size does not depend on the number of clients, but on the cohort: both have a row for each of its members. The rows of the
reduction ride in the same integer sum: every row is written, as the bits of float64, by one rank and is zero on all others.
"""

import numpy as np

CLIENT_FIELDS = (
    "samples",
    "loss_first_epoch",
    "loss_last_epoch",
    "accuracy_last_epoch",
    "update_norm",
    "largest_weight",
    "start_seconds",
    "seconds",
    "rank",
)
RANK_FIELDS = ("train_seconds", "wait_seconds", "leave")
NO_RANK = -1  # the rank of a member of the cohort that does not train
MODEL = "model"  # the sum of the clients' weights

PLAN = np.dtype([("rho", "f8"), ("client", "i4"), ("rank", "i4"), ("since", "i4"), ("epochs", "i4")])
HEAD = np.dtype([("round", "i8"), ("leave", "i8")])


class Broadcast:
    """From rank 0 to all: weights, an algorithm's arrays, who trains where, and whether to leave.

    size: number of weights; cohort: number of its members; declared: {name: Array} of kind broadcast; zeros: makes the memory.

    weights: float32 (size,). arrays: {name: float32}. plan: a record of PLAN for each member of the cohort: rho, its model's
    coefficient in the sum; rank, NO_RANK if it does not train; since, the round in which it trained last, or 0; epochs, of its
    local training. head: a record of HEAD: the rounds finished, and the exit status with which all ranks leave, or 0.
    """

    def __init__(self, size, cohort, declared, zeros=np.zeros):
        shapes = {MODEL: (size,)} | {name: array.shape for name, array in declared.items()}
        floats = sum(int(np.prod(shape)) for shape in shapes.values())
        split = -(-floats * 4 // 8) * 8  # the plan's float64 need an address divisible by 8
        self.buffer = zeros(split + HEAD.itemsize + cohort * PLAN.itemsize, np.uint8)
        self.arrays = _views(self.buffer[: floats * 4].view(np.float32), shapes)
        self.weights = self.arrays.pop(MODEL)
        self.head = self.buffer[split : split + HEAD.itemsize].view(HEAD)[0]
        self.plan = self.buffer[split + HEAD.itemsize :].view(PLAN)


class Reduction:
    """From all to rank 0: exact sums, and a row of figures for each member of the cohort and for each rank.

    declared: {name: Array} of kind sum; ranks: of the communicator; outputs: columns of a further row for each member of the
    cohort, for `audit`; the others as in `Broadcast`.

    units: int64, all sums, one after another; sums: {name: its view of them}, of which MODEL is the first. clients: float64
    (cohort, fields); ranks: float64 (ranks, fields); outputs: float64 (cohort, outputs).
    """

    def __init__(self, size, cohort, ranks, declared, outputs=0, zeros=np.zeros):
        shapes = {MODEL: (size,)} | {name: array.shape for name, array in declared.items()}
        units = sum(int(np.prod(shape)) for shape in shapes.values())
        widths = [cohort * len(CLIENT_FIELDS), ranks * len(RANK_FIELDS), cohort * outputs]
        self.buffer = zeros(units + sum(widths), np.int64)
        self.units = self.buffer[:units]
        self.sums = _views(self.units, shapes)
        rows = np.split(self.buffer[units:].view(np.float64), np.cumsum(widths)[:-1])
        self.clients = rows[0].reshape(cohort, len(CLIENT_FIELDS))
        self.ranks = rows[1].reshape(ranks, len(RANK_FIELDS))
        self.outputs = rows[2].reshape(cohort, outputs)

    def of_clients(self, field):
        """float64 (cohort,): one of CLIENT_FIELDS."""
        return self.clients[:, CLIENT_FIELDS.index(field)]

    def of_ranks(self, field):
        """float64 (ranks,): one of RANK_FIELDS."""
        return self.ranks[:, RANK_FIELDS.index(field)]

    def is_complete(self):
        """Whether every member of the cohort was trained or skipped, once the rows of all ranks are here."""
        return self.of_clients("samples").all()

    def skip(self, absent, samples):
        """Fill the rows of members that no rank trains. absent: bool (cohort,); samples: int (cohort,), of each client."""
        self.clients[absent] = np.nan
        for name, values in (
            ("samples", samples[absent]),
            ("largest_weight", 0.0),
            ("seconds", 0.0),
            ("rank", NO_RANK),
        ):
            self.of_clients(name)[absent] = values

    def clear(self):
        self.buffer[:] = 0


def _views(vector, shapes):
    """{name: a view of `vector` of that shape}, one after another."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    return {
        name: part.reshape(shape) for part, (name, shape) in zip(np.split(vector, ends[:-1]), shapes.items())
    }
