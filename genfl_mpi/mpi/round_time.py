"""A cost model for the time of a round on a given number of ranks, used by `plan` and `scaling`."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from genfl_mpi.mpi.schedule import assign

MEMORY_LATENCY = 1e-6  # latency of a message through a node's memory, in seconds


@dataclass(frozen=True)
class Cluster:
    """A machine of `nodes` nodes with the same number of ranks each.

    ranks: in total. cores: of a node. threads: of a rank. latency: of a message between nodes, s. bandwidth:
    of a node's network, B/s. copy_rate: rate at which a node copies within its memory, B/s.
    """

    ranks: int
    nodes: int
    cores: int
    threads: int
    latency: float
    bandwidth: float
    copy_rate: float

    @property
    def ranks_per_node(self) -> int:
        """The number of ranks on a node."""
        return -(-self.ranks // self.nodes)

    @property
    def crowding(self) -> float:
        """The factor by which all work slows down because ranks share cores; 1 if they do not."""
        return max(1.0, self.ranks_per_node * self.threads / self.cores)


def measure_copy_rate() -> float:
    """Measure this machine's memory copy rate, in bytes a second."""
    source, target = np.ones(2**25, np.uint8), np.empty(2**25, np.uint8)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return len(source) / min(seconds)


def exchange(down: float, up: float, cluster: Cluster) -> float:
    """Predict the seconds of a broadcast of `down` bytes and a reduction of `up` bytes.

    Counts transfers within and between nodes. LogGP model (Alexandrov et al. 1995) of the algorithms that MPI
    libraries use for long messages (Thakur, Rabenseifner and Gropp 2005): scatter and ring allgather;
    reduce-scatter by recursive halving and gather. Within a node every byte is copied twice.
    """
    seconds = 0.0
    levels = (
        (cluster.nodes, cluster.latency, 1 / cluster.bandwidth),
        (cluster.ranks_per_node, MEMORY_LATENCY, 2 * cluster.crowding / cluster.copy_rate),
    )
    for parties, latency, seconds_per_byte in levels:
        steps, share = int(np.ceil(np.log2(parties))), (parties - 1) / parties
        seconds += (steps + parties - 1) * latency + 2 * share * down * seconds_per_byte
        seconds += 2 * steps * latency + 2 * share * up * seconds_per_byte + share * up / cluster.copy_rate
    return seconds


def loads(seconds: np.ndarray, busy: float, ranks: int) -> np.ndarray:
    """Predict the working seconds of each rank, for clients scheduled onto equally fast ranks.

    Returns float64 (ranks,). seconds: float (cohort,), training time of each client; busy: seconds for which
    rank 0 works before it trains clients.
    """
    load = np.bincount(assign(seconds, np.ones(ranks), busy), weights=seconds, minlength=ranks)
    load[0] += busy
    return load
