"""The two messages of a round: named arrays broadcast by rank 0, and named sums reduced to it.

Each message is one flat buffer. Their size depends on the cohort, not on the number of clients: both have a
row for each member of the cohort. The rows of the reduction are part of the same integer sum: one rank writes
a row, as the bits of float64, and the row is zero on all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from genfl_mpi.federation.algorithms.interface import Array

# (length, dtype) -> array of zeros
Allocate: TypeAlias = Callable[[int, Any], np.ndarray]

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
RANK_FIELDS = ("train_seconds", "wait_seconds", "leave", "generating_seconds")
NO_RANK = -1  # the rank of a member of the cohort that does not train
MODEL = "model"  # the sum of the clients' weights
RHO = "summed rho"  # the sum of their coefficients, with rho.over=selected

PLAN = np.dtype([("rho", "f8"), ("client", "i4"), ("rank", "i4"), ("since", "i4"), ("epochs", "i4")])
HEAD = np.dtype(
    [
        ("round", "i8"),
        ("leave", "i8"),
        ("batches", "i8"),
        ("cohort", "i8"),
        ("clip", "f8"),
        ("multiplier", "f8"),
    ]
)


class Broadcast:
    """Hold the message from rank 0: weights, an algorithm's arrays, the training plan, whether to exit.

    size: number of weights; cohort: number of clients in it; declared: {name: Array} of kind broadcast;
    stateful: whether clients have state; zeros: allocates the memory.

    weights: float32 (size,). arrays: {name: float32}. plan: a PLAN record for each member of the cohort: rho,
    the coefficient of its model in the sum; rank, NO_RANK if it does not train; since, the round of its last
    training, or 0; epochs, of its local training. head: a HEAD record: the number of finished rounds; the
    exit status with which all ranks leave, or 0; the batches of images that several ranks generate, or 0; the
    members of this round's cohort, at most `cohort`; and with differential privacy the bound of their updates
    and the noise multiplier. locations: int64 (cohort, 4), LOCATION of each client's state; (0, 4) without
    state.
    """

    def __init__(
        self,
        size: int,
        cohort: int,
        declared: Mapping[str, Array],
        stateful: bool = False,
        zeros: Allocate = np.zeros,
    ) -> None:
        shapes = {MODEL: (size,)} | {name: array.shape for name, array in declared.items()}
        floats = sum(int(np.prod(shape)) for shape in shapes.values())
        split = -(-floats * 4 // 8) * 8  # aligns the plan's float64 to 8 bytes
        ends = np.cumsum([split, HEAD.itemsize, cohort * PLAN.itemsize, stateful * cohort * 4 * 8])
        self.buffer = zeros(int(ends[-1]), np.uint8)
        self.arrays = _views(self.buffer[: floats * 4].view(np.float32), shapes)
        self.weights = self.arrays.pop(MODEL)
        self.head = self.buffer[ends[0] : ends[1]].view(HEAD)[0]
        self._rows = self.buffer[ends[1] : ends[2]].view(PLAN)
        self._locations = self.buffer[ends[2] :].view(np.int64).reshape(-1, 4)
        self.head["cohort"] = cohort

    @property
    def plan(self) -> np.ndarray:
        """Return the rows of this round's cohort."""
        return self._rows[: self.head["cohort"]]

    @property
    def locations(self) -> np.ndarray:
        """Return the locations of this round's cohort."""
        return self._locations[: self.head["cohort"]]


class Reduction:
    """Hold the message to rank 0: exact sums, and a row for each member of the cohort and each rank.

    declared: {name: Array} of kind sum; ranks: size of the communicator; outputs: width of another row for
    each member of the cohort, for `audit`; the others as in `Broadcast`.

    units: int64, all sums one after another; sums: {name: view of units}, MODEL first. clients: float64
    (cohort, fields); ranks: float64 (ranks, fields); outputs: float64 (cohort, outputs).
    records: int64 (cohort, 2), offset plus 1 and checksum of the state that each client wrote, 0 for those
    that wrote none; (0, 2) without state.
    """

    def __init__(
        self,
        size: int,
        cohort: int,
        ranks: int,
        declared: Mapping[str, Array],
        outputs: int = 0,
        stateful: bool = False,
        zeros: Allocate = np.zeros,
    ) -> None:
        shapes = {MODEL: (size,)} | {name: array.shape for name, array in declared.items()}
        units = sum(int(np.prod(shape)) for shape in shapes.values())
        widths = [
            cohort * len(CLIENT_FIELDS),
            ranks * len(RANK_FIELDS),
            cohort * outputs,
            stateful * cohort * 2,
        ]
        self.buffer = zeros(units + sum(widths), np.int64)
        self.units = self.buffer[:units]
        self.sums = _views(self.units, shapes)
        rows = np.split(self.buffer[units:].view(np.float64), np.cumsum(widths)[:-1])
        self._records = rows[3].view(np.int64).reshape(-1, 2)
        self._clients = rows[0].reshape(cohort, len(CLIENT_FIELDS))
        self.ranks = rows[1].reshape(ranks, len(RANK_FIELDS))
        self._outputs = rows[2].reshape(cohort, outputs)
        self.resize(cohort)

    def resize(self, cohort: int) -> None:
        """Show the rows of a cohort of at most the size for which the message was allocated."""
        self.clients, self.outputs = self._clients[:cohort], self._outputs[:cohort]
        self.records = self._records[:cohort]

    def client_column(self, field: str) -> np.ndarray:
        """Return one of CLIENT_FIELDS, float64 (cohort,)."""
        return self.clients[:, CLIENT_FIELDS.index(field)]

    def rank_column(self, field: str) -> np.ndarray:
        """Return one of RANK_FIELDS, float64 (ranks,)."""
        return self.ranks[:, RANK_FIELDS.index(field)]

    def is_complete(self) -> np.bool:
        """Return whether every member of the cohort was trained or skipped. Valid after the reduction."""
        return self.client_column("samples").all()

    def skip(self, absent: np.ndarray, samples: np.ndarray) -> None:
        """Fill the rows of members that no rank trains. absent: bool (cohort,); samples: int (cohort,)."""
        self.clients[absent] = np.nan
        known = {"samples": samples[absent], "largest_weight": 0.0, "seconds": 0.0, "rank": NO_RANK}
        for name, values in known.items():
            self.client_column(name)[absent] = values

    def clear(self) -> None:
        """Set all sums and rows to zero."""
        self.buffer[:] = 0


def _views(vector: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Split `vector` into consecutive views of these shapes, by name."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    return {
        name: part.reshape(shape) for part, (name, shape) in zip(np.split(vector, ends[:-1]), shapes.items())
    }
