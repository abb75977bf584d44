"""Measurements of the messages between the ranks of a job, and of the MPI library's support for GPUs."""

from __future__ import annotations

import ctypes
import os
import time

import numpy as np

from genfl_mpi.mpi import collectives
from genfl_mpi.mpi.collectives import MPI

GPU_SUPPORT_CUDA = 0  # MPIX_GPU_SUPPORT_CUDA of MPICH
SMALL, LARGE = 8, 4 << 20  # message sizes of `ping`, in bytes
REPEATS = {SMALL: 100, LARGE: 5}


def available_memory() -> int:
    """Return the bytes of this machine's memory that are free, or would be for a program that needs them."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_gpu_aware() -> bool | None:
    """Return whether the MPI library can send from NVIDIA GPU memory; None if it does not report this.

    MPICH reports it by MPIX_GPU_query_support, which takes run-time settings into account; Open MPI by
    MPIX_Query_cuda_support.
    """
    try:
        library = ctypes.CDLL(MPI.__file__)
    except OSError:
        return None
    if hasattr(library, "MPIX_GPU_query_support"):
        answer = ctypes.c_int(0)
        failed = library.MPIX_GPU_query_support(GPU_SUPPORT_CUDA, ctypes.byref(answer))
        return None if failed else bool(answer.value)
    return bool(library.MPIX_Query_cuda_support()) if hasattr(library, "MPIX_Query_cuda_support") else None


def ping(comm: MPI.Comm, partner: int) -> tuple[float, float] | None:
    """Measure messages between rank 0 and `partner`; return latency, s, and bandwidth, bytes/s.

    Medians of several round trips, halved; a small message gives the latency, a large one the bandwidth.
    Returns None on ranks other than 0. Collective over the two ranks, a no-op on the others.
    """
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


def reduction_in_node(comm: MPI.Comm, units: int) -> tuple[int, float]:
    """Measure `reduction` among the ranks of this node; return (their number, seconds). Collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    ranks, seconds = node.size, reduction(node, units)
    node.Free()
    return ranks, seconds


def reduction(comm: MPI.Comm, units: int, repeats: int = 5) -> float:
    """Return the median seconds of a reduction of `units` int64 values to rank 0. Collective."""
    buffer, times = np.zeros(units, np.int64), []
    for _ in range(repeats + 1):
        collectives.wait_for_all(comm)
        start = time.perf_counter()
        collectives.reduce_sum(comm, buffer)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
