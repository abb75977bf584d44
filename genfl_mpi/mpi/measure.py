"""How fast messages travel between the ranks of a job, and what MPI library carries them."""

import ctypes
import time

import numpy as np

from genfl_mpi.mpi import collectives
from genfl_mpi.mpi.collectives import MPI

GPU_OF_CUDA = 0  # MPIX_GPU_SUPPORT_CUDA of MPICH
SMALL, LARGE = 8, 4 << 20  # bytes of a ping's messages
REPEATS = {SMALL: 100, LARGE: 5}


def is_gpu_aware():
    """Whether the MPI library says that it sends from the memory of Nvidia's GPUs; None if it does not say. MPICH says it by
    MPIX_GPU_query_support, which knows whether it was switched on, and Open MPI by MPIX_Query_cuda_support."""
    try:
        library = ctypes.CDLL(MPI.__file__)
    except OSError:
        return None
    if hasattr(library, "MPIX_GPU_query_support"):
        answer = ctypes.c_int(0)
        failed = library.MPIX_GPU_query_support(GPU_OF_CUDA, ctypes.byref(answer))
        return None if failed else bool(answer.value)
    return bool(library.MPIX_Query_cuda_support()) if hasattr(library, "MPIX_Query_cuda_support") else None


def ping(comm, partner):
    """(seconds, bytes a second): of a small message from rank 0 to `partner` and back, halved, and of large ones. On rank 0, None
    elsewhere. The median of several; collective over the two, and a no-op for the others."""
    if comm.rank not in (0, partner):
        return None
    seconds = {}
    for size, repeats in REPEATS.items():
        buffer, times = np.zeros(size, np.uint8), []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            if comm.rank == 0:
                comm.Send([buffer, MPI.BYTE], partner)
                comm.Recv([buffer, MPI.BYTE], partner)
            else:
                comm.Recv([buffer, MPI.BYTE], 0)
                comm.Send([buffer, MPI.BYTE], 0)
            times.append((time.perf_counter() - start) / 2)
        seconds[size] = float(np.median(times[1:]))
    return (seconds[SMALL], LARGE / seconds[LARGE]) if comm.rank == 0 else None


def reduction_in_node(comm, units):
    """(ranks, seconds): the `reduction` among the ranks on the node of this one. Collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    ranks, seconds = node.size, reduction(node, units)
    node.Free()
    return ranks, seconds


def reduction(comm, units, repeats=5):
    """Median seconds of a round's reduction of so many int64 `units` to rank 0. Collective."""
    buffer, times = np.zeros(units, np.int64), []
    for _ in range(repeats + 1):
        collectives.arrive(comm)
        start = time.perf_counter()
        collectives.reduce_sum(comm, buffer)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
