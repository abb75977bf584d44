"""Groups of ranks that work on different runs, and take the next run when one is finished."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np

from genfl_mpi.mpi.collectives import MPI, wait_for_all


def count_groups(ranks: int, busy: Collection[int]) -> int:
    """Return how many runs are computed at once, at least one: each gets the ranks that it keeps busy.

    busy: ranks that each run keeps busy.
    """
    return max(1, min(len(busy), ranks // max(busy)))


def split(comm: MPI.Comm, groups: int) -> MPI.Comm:
    """Return the communicator of this rank's group. Collective.

    Groups consist of neighbouring ranks, to span as few nodes as possible.
    """
    return comm.Split(comm.rank * groups // comm.size, comm.rank)


class Turns:
    """The numbers 0 to count - 1, each handed out to one group.

    Iterate over this object on every rank of every group.

    comm: communicator of all groups; its rank 0 keeps the counter, in a window. group: communicator of this
    rank's group.

    No rank serves requests: a group increments the counter itself, by a one-sided operation. Where the MPI
    library needs rank 0 to make progress (between nodes without hardware support), the operation completes at
    rank 0's next MPI call, after the client that it trains.
    """

    def __init__(self, comm: MPI.Comm, group: MPI.Comm, count: int):
        self.comm, self.group, self.count = comm, group, count
        self.window = MPI.Win.Allocate(8 if comm.rank == 0 else 0, 8, comm=comm)  # type: ignore[arg-type]
        if comm.rank == 0:
            self.window.Lock(0)  # the end of this epoch makes the store visible to the other ranks' RMA calls
            np.frombuffer(self.window, dtype=np.int64)[0] = 0  # type: ignore[call-overload]
            self.window.Unlock(0)
        comm.Barrier()

    def __iter__(self) -> Iterator[int]:
        while (turn := self._next()) < self.count:
            yield turn

    def _next(self) -> int:
        turn = np.zeros(1, dtype=np.int64)
        if self.group.rank == 0:
            self.window.Lock(0, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
            self.window.Fetch_and_op(
                [np.ones(1, dtype=np.int64), MPI.INT64_T], [turn, MPI.INT64_T], 0, op=MPI.SUM
            )
            self.window.Unlock(0)
        self.group.Bcast([turn, MPI.INT64_T], root=0)
        return int(turn[0])

    def close(self, leaving: Callable[[], int]) -> None:
        """Wait until every group has arrived, and free the window. Collective.

        leaving: as in `wait_for_all`.
        """
        wait_for_all(self.comm, leaving=leaving)
        self.window.Free()
