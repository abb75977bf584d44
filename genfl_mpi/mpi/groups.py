"""Ranks divided into groups that work on runs of their own, and take the next one when they are done."""

import numpy as np

from genfl_mpi.mpi.collectives import MPI, arrive


def split(comm, groups):
    """This rank's group, a communicator: neighbouring ranks, so that a group stays on as few nodes as it can. Collective."""
    return comm.Split(comm.rank * groups // comm.size, comm.rank)


class Turns:
    """The numbers 0 to count - 1, handed out one at a time: iterating over them, each group gets others than all other groups.

    comm: the communicator of all groups, whose rank 0 keeps the counter, in a window; group: of this rank. Nobody waits to be
    served: a group adds one to the counter itself. Where the MPI library cannot do that without rank 0 (between nodes without
    such hardware), it is done when rank 0 looks at MPI next, after the client that it trains.
    """

    def __init__(self, comm, group, count):
        self.comm, self.group, self.count = comm, group, count
        self.window = MPI.Win.Allocate(8 if comm.rank == 0 else 0, 8, comm=comm)
        if comm.rank == 0:
            self.window.Lock(0)  # the end of the epoch makes the store visible to the others' RMA calls
            np.frombuffer(self.window, dtype=np.int64)[0] = 0
            self.window.Unlock(0)
        comm.Barrier()

    def __iter__(self):
        while (turn := self._next()) < self.count:
            yield turn

    def _next(self):
        turn = np.zeros(1, dtype=np.int64)
        if self.group.rank == 0:
            self.window.Lock(0, MPI.LOCK_SHARED, MPI.MODE_NOCHECK)
            self.window.Fetch_and_op(
                [np.ones(1, dtype=np.int64), MPI.INT64_T], [turn, MPI.INT64_T], 0, op=MPI.SUM
            )
            self.window.Unlock(0)
        self.group.Bcast([turn, MPI.INT64_T], root=0)
        return int(turn[0])

    def close(self, leaving):
        """Wait until every group has come here, and end. Collective; leaving: asked meanwhile, as in `arrive`."""
        arrive(self.comm, leaving=leaving)
        self.window.Free()
