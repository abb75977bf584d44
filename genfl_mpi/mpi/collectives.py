"""What travels between ranks: buffer collectives that everyone enters together, and memory shared on a node."""

import os
import time
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from genfl_mpi.util.errors import UserError

EAGER = 1e-3  # seconds for which a rank that waits looks at MPI again and again, only giving way to others on its core
LONGEST_NAP = 2e-3  # seconds between two looks later on


def world():
    return MPI.COMM_WORLD


def alone():
    """This rank, for what it does without the others."""
    return MPI.COMM_SELF


def library():
    return MPI.Get_library_version().strip().rstrip("\0").splitlines()[0]


class Waiting(NamedTuple):
    idle_seconds: float
    working_seconds: float


def arrive(comm, meanwhile=None, leaving=lambda: 0):
    """Wait until every rank has come here. Returns a `Waiting`: how long it took, and how much of that was put to use.

    A blocking collective would spin on a core that another rank's work may need, and would not serve signals. So ranks
    meet in a non-blocking barrier first, looking at it all the time while EAGER, then less and less often up to LONGEST_NAP.
    `meanwhile` is work for that time: a function that does one piece, or returns False to be called no more.
    `leaving`, a function, is asked while it takes, and no more work is begun once it returns a status.
    """
    start = time.perf_counter()
    request = comm.Ibarrier()
    # The barrier takes a few looks by every rank after the last one came; only then is there time for a piece of work.
    patience = 3 * LONGEST_NAP * (1 + comm.size.bit_length())
    nap, worked, looked_since = 5e-5, 0.0, start
    while not request.Test():
        if leaving():
            meanwhile = None
        if meanwhile is not None and time.perf_counter() - looked_since > patience:
            before = time.perf_counter()
            if not meanwhile():
                meanwhile = None
            looked_since = time.perf_counter()
            worked += looked_since - before
            nap = 5e-5
        elif time.perf_counter() - start < EAGER:
            os.sched_yield()
        else:
            time.sleep(nap)
            nap = min(2 * nap, LONGEST_NAP)
    return Waiting(time.perf_counter() - start - worked, worked)


def broadcast(comm, buffer):
    """Rank 0's `buffer` (a contiguous array) to every rank, in place."""
    arrive(comm)
    comm.Bcast([buffer.view(np.uint8), MPI.BYTE], root=0)


def reduce_sum(comm, buffer):
    """The sum over ranks of `buffer` (int64), in place on rank 0."""
    if comm.rank == 0:
        comm.Reduce(MPI.IN_PLACE, [buffer, MPI.INT64_T], op=MPI.SUM, root=0)
    else:
        comm.Reduce([buffer, MPI.INT64_T], None, op=MPI.SUM, root=0)


def sum_everywhere(comm, values):
    """The sum over ranks of `values` (int64), in place on every rank."""
    arrive(comm)
    comm.Allreduce(MPI.IN_PLACE, [values, MPI.INT64_T], op=MPI.SUM)


def largest(comm, number):
    """The largest of the ranks' integers, on every rank."""
    return comm.allreduce(number, op=MPI.MAX)


def together(comm, function):
    """Call `function` on every rank. If it raises a UserError on one, all raise the first one.

    For the start of a run, where one rank may miss what another has. (Errors are pickled: they are few and small.)
    """
    result = error = None
    try:
        result = function()
    except UserError as caught:
        error = caught
    arrive(comm)
    for error in comm.allgather(error):
        if error is not None:
            error.on_all_ranks = True
            raise error
    return result


def from_rank0(comm, function):
    """Call `function` on rank 0 alone; every rank gets its result (pickled: a configuration, a path) or its UserError."""
    return comm.bcast(together(comm, lambda: function() if comm.rank == 0 else None), root=0)


def node_shared(comm, make):
    """Arrays that exist once a node: `make()` is called by one rank of each node and returns a dict of arrays.

    Collective. Returns the dict, as read-only arrays over MPI shared memory, and the window that keeps them alive.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    made = together(
        comm,
        lambda: (
            {name: np.ascontiguousarray(array) for name, array in make().items()} if node.rank == 0 else {}
        ),
    )
    header = node.bcast([(name, array.dtype.str, array.shape) for name, array in made.items()], root=0)
    sizes = [-(-np.dtype(dtype).itemsize * int(np.prod(shape)) // 64) * 64 for _, dtype, shape in header]
    window = MPI.Win.Allocate_shared(sum(sizes) if node.rank == 0 else 0, 1, comm=node)
    memory, _ = window.Shared_query(0)
    shared, start = {}, 0
    for (name, dtype, shape), size in zip(header, sizes):
        shared[name] = np.frombuffer(memory, np.dtype(dtype), int(np.prod(shape)), start).reshape(shape)
        start += size
    # A barrier alone does not order loads and stores. In MPI's memory model the writer calls Win.Sync before
    # the barrier and every reader after it, within an epoch of passive target synchronization.
    window.Lock_all()
    for name in list(made):
        shared[name][...] = made.pop(name)  # no longer than needed is there a second copy
    window.Sync()
    node.Barrier()
    window.Sync()
    window.Unlock_all()
    node.Free()
    for array in shared.values():
        array.flags.writeable = False
    return shared, window
