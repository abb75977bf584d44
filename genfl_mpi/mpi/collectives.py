"""Buffer collectives that all ranks enter together, and memory shared by the ranks of a node."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from genfl_mpi.util.errors import UserError

try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py's wheel finds no library
    raise UserError(
        f"mpi4py cannot load an MPI library ({str(error).splitlines()[0]}): install one with "
        "pip install 'mpich>=4.2.3', or load your site's MPI module"
    ) from error

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

SPIN_SECONDS = 1e-3  # for this long a waiting rank polls continuously, yielding its core between polls
SHARED_MEMORY = "/dev/shm"  # where MPICH keeps the memory that the ranks of a node share
MAX_NAP_SECONDS = 2e-3  # longest interval between two polls after that


def world() -> MPI.Intracomm:
    """Return the communicator of all ranks."""
    return MPI.COMM_WORLD


def single() -> MPI.Intracomm:
    """Return the communicator of this rank alone."""
    return MPI.COMM_SELF


def library() -> str:
    """Return the first line of the MPI library's version."""
    return MPI.Get_library_version().strip().rstrip("\0").splitlines()[0]


class Waiting(NamedTuple):
    """Seconds that a rank waited in `wait_for_all`: idle, and working meanwhile."""

    idle_seconds: float
    working_seconds: float


def wait_for_all(
    comm: MPI.Comm,
    meanwhile: Callable[[], object] | None = None,
    leaving: Callable[[], int] = lambda: 0,
) -> Waiting:
    """Wait until every rank has arrived. Return the time spent idle and the time put to use. Collective.

    A blocking collective would spin on a core that another rank may need, and would not react to signals.
    Ranks therefore meet in a non-blocking barrier first. They poll it continuously for SPIN_SECONDS, then at
    growing intervals up to MAX_NAP_SECONDS.

    meanwhile: does one piece of work, to fill the wait; returns a false value when no work is left. leaving:
    polled while waiting; as soon as it returns an exit status other than 0, no further work begins.
    """
    start = time.perf_counter()
    request = comm.Ibarrier()
    # After the last arrival, the barrier takes a few polls by every rank to complete. Only a longer wait
    # leaves time for work.
    patience = 3 * MAX_NAP_SECONDS * (1 + comm.size.bit_length())
    nap, worked, idle_since = 5e-5, 0.0, start
    while not request.Test():
        if leaving():
            meanwhile = None
        if meanwhile is not None and time.perf_counter() - idle_since > patience:
            before = time.perf_counter()
            if not meanwhile():
                meanwhile = None
            idle_since = time.perf_counter()
            worked += idle_since - before
            nap = 5e-5
        elif time.perf_counter() - start < SPIN_SECONDS:
            os.sched_yield()
        else:
            time.sleep(nap)
            nap = min(2 * nap, MAX_NAP_SECONDS)
    return Waiting(time.perf_counter() - start - worked, worked)


def start_broadcast(comm: MPI.Comm, buffer: np.ndarray) -> MPI.Request:
    """Begin to broadcast rank 0's `buffer`, a contiguous array that stays untouched until `wait_for`."""
    return comm.Ibcast([buffer.view(np.uint8), MPI.BYTE], root=0)


def start_reduce(comm: MPI.Comm, buffer: np.ndarray) -> MPI.Request:
    """Begin to sum `buffer` (int64), which stays untouched until `wait_for`, in place on rank 0."""
    if comm.rank == 0:
        return comm.Ireduce(MPI.IN_PLACE, [buffer, MPI.INT64_T], op=MPI.SUM, root=0)
    return comm.Ireduce([buffer, MPI.INT64_T], None, op=MPI.SUM, root=0)


def wait_for(request: MPI.Request, meanwhile: Callable[[], object]) -> Waiting:
    """Wait until a message that was begun is complete. Return the time spent idle and the time put to use.

    meanwhile: does one piece of work; returns a false value when there is none.
    """
    start = time.perf_counter()
    nap, worked = 5e-5, 0.0
    while not request.Test():
        before = time.perf_counter()
        if meanwhile():
            worked += time.perf_counter() - before
            nap = 5e-5
        elif before - start < SPIN_SECONDS:
            os.sched_yield()
        else:
            time.sleep(nap)
            nap = min(2 * nap, MAX_NAP_SECONDS)
    return Waiting(time.perf_counter() - start - worked, worked)


def broadcast(comm: MPI.Comm, buffer: np.ndarray) -> None:
    """Broadcast rank 0's `buffer`, a contiguous array, in place. Collective."""
    wait_for_all(comm)
    comm.Bcast([buffer.view(np.uint8), MPI.BYTE], root=0)


def reduce_sum(comm: MPI.Comm, buffer: np.ndarray | torch.Tensor) -> None:
    """Sum `buffer` (int64) over ranks, in place on rank 0. Collective; callers `wait_for_all` first.

    Masked integers are summed modulo 2**64, for which C, and so MPI, needs the unsigned type; the bits of
    all other sums are the same.
    """
    if comm.rank == 0:
        comm.Reduce(MPI.IN_PLACE, [buffer, MPI.UINT64_T], op=MPI.SUM, root=0)
    else:
        comm.Reduce([buffer, MPI.UINT64_T], None, op=MPI.SUM, root=0)


def gather_parts(comm: MPI.Comm, part: np.ndarray, whole: np.ndarray) -> None:
    """Gather the ranks' parts of a vector on rank 0, in order of the ranks. Collective.

    part: uint64 (k,), contiguous; whole: uint64 (n,), filled on rank 0, where n is the sum of all k.
    """
    counts = comm.gather(len(part), root=0)
    comm.Gatherv(
        [part, MPI.UINT64_T], [whole, counts, None, MPI.UINT64_T] if comm.rank == 0 else None, root=0
    )


def sum_everywhere(comm: MPI.Comm, values: np.ndarray) -> None:
    """Sum `values` (int64) over ranks, in place on every rank. Collective."""
    wait_for_all(comm)
    comm.Allreduce(MPI.IN_PLACE, [values, MPI.INT64_T], op=MPI.SUM)


def exchange(
    comm: MPI.Comm,
    sent: np.ndarray,
    sent_counts: Sequence[int],
    received: np.ndarray,
    received_counts: Sequence[int],
    unit: int,
) -> None:
    """Send a part of `sent` to every rank, and receive a part of `received` from every rank. Collective.

    sent, received: float32, parts in the order of the ranks; counts: of each part, in units of `unit` values,
    so that they do not exceed MPI's 32 bits.
    """
    wait_for_all(comm)
    block = MPI.FLOAT.Create_contiguous(unit).Commit()
    comm.Alltoallv([sent, list(sent_counts), block], [received, list(received_counts), block])
    block.Free()


def gather_rows(comm: MPI.Comm, rows: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Return the rows of all ranks on rank 0, in the order of the ranks; elsewhere none. Collective.

    rows: float64 (rows of this rank, ...); counts: rows of each rank.
    """
    wait_for_all(comm)
    gathered = np.empty((sum(counts) if comm.rank == 0 else 0, *rows.shape[1:]))
    row = MPI.DOUBLE.Create_contiguous(max(1, math.prod(rows.shape[1:]))).Commit()
    comm.Gatherv([rows, len(rows), row], [gathered, list(counts), row] if comm.rank == 0 else None, root=0)
    row.Free()
    return gathered


def maximum(comm: MPI.Comm, number: int) -> int:
    """Return the maximum of the ranks' integers, on every rank. Collective."""
    return comm.allreduce(number, op=MPI.MAX)


def call_on_all(comm: MPI.Comm, function: Callable[[], Result]) -> Result:
    """Call `function` on every rank; if it raises a UserError on any, raise the first one on all. Collective.

    For the start of a run, where one rank may lack what another one has. (Errors are pickled: they are rare
    and small.)
    """
    result = None
    error = None
    try:
        result = function()
    except UserError as caught:
        error = caught
    wait_for_all(comm)
    for found in comm.allgather(error):
        if found is not None:
            found.on_all_ranks = True
            raise found
    return result  # type: ignore[return-value]  # without an error the function has returned


def from_rank0(comm: MPI.Comm, function: Callable[[], Result]) -> Result:
    """Call `function` on rank 0; return its result, or raise its UserError, on every rank. Collective.

    The result (a configuration, a path) is pickled.
    """
    return comm.bcast(call_on_all(comm, lambda: function() if comm.rank == 0 else None), root=0)


def _check_shared_memory(size: int) -> None:
    """Raise UserError if MPICH cannot share `size` bytes: the first write would end with a bus error."""
    if not (library().startswith("MPICH") and os.path.isdir(SHARED_MEMORY)):
        return
    about = os.statvfs(SHARED_MEMORY)
    free = about.f_bavail * about.f_frsize
    if size > free:
        raise UserError(
            f"the ranks of {os.uname().nodename} share {size / 1e6:.0f} MB, and {SHARED_MEMORY} has "
            f"{free / 1e6:.0f} MB free; start a container with --shm-size=8g, or enlarge {SHARED_MEMORY}"
        )


def node_shared(
    comm: MPI.Comm, make: Callable[[], Mapping[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], MPI.Win]:
    """Make arrays that exist once per node. Collective.

    One rank of each node calls `make`, which returns arrays by name. Returns them on every rank, as read-only
    views of MPI shared memory, and the window that keeps this memory alive. Raises UserError on every rank if
    a node's shared memory is too small.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)

    def make_once() -> dict[str, np.ndarray]:
        if node.rank != 0:
            return {}
        arrays = {name: np.ascontiguousarray(array) for name, array in make().items()}
        if node.size > 1:
            _check_shared_memory(sum(array.nbytes for array in arrays.values()))
        return arrays

    made = call_on_all(comm, make_once)
    header = node.bcast([(name, array.dtype.str, array.shape) for name, array in made.items()], root=0)
    sizes = [-(-np.dtype(dtype).itemsize * int(np.prod(shape)) // 64) * 64 for _, dtype, shape in header]
    window = MPI.Win.Allocate_shared(sum(sizes) if node.rank == 0 else 0, 1, comm=node)  # type: ignore[arg-type]
    memory, _ = window.Shared_query(0)
    shared, start = {}, 0
    for (name, dtype, shape), size in zip(header, sizes):
        flat = np.frombuffer(memory, np.dtype(dtype), int(np.prod(shape)), start)  # type: ignore[call-overload]
        shared[name] = flat.reshape(shape)
        start += size
    # A barrier alone does not order loads and stores. MPI's memory model requires the writer to call Win.Sync
    # before the barrier and every reader after it, within an epoch of passive target synchronization.
    window.Lock_all()
    for name in list(made):
        shared[name][...] = made.pop(name)  # pop: frees each second copy as early as possible
    window.Sync()
    node.Barrier()
    window.Sync()
    window.Unlock_all()
    node.Free()
    for array in shared.values():
        array.flags.writeable = False
    return shared, window
