"""How long a round takes on so many ranks, from what its parts cost: the model behind `plan` and `scaling`."""

import time
from dataclasses import dataclass

import numpy as np

from genfl_mpi.mpi.schedule import assign

MEMORY_LATENCY = 1e-6  # seconds of a message through a node's memory


@dataclass(frozen=True)
class Cluster:
    """ranks, on so many nodes, as many on each. cores: of a node; threads: of a rank; latency: of a message between nodes, s;
    bandwidth: of a node's network, B/s; copying: of a node's memory to itself, B/s."""

    ranks: int
    nodes: int
    cores: int
    threads: int
    latency: float
    bandwidth: float
    copying: float

    @property
    def ranks_a_node(self):
        return -(-self.ranks // self.nodes)

    @property
    def crowding(self):
        """How much longer everything takes because ranks share cores."""
        return max(1.0, self.ranks_a_node * self.threads / self.cores)


def copying():
    """Bytes a second that this machine copies in memory."""
    source, target = np.ones(2**25, np.uint8), np.empty(2**25, np.uint8)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return len(source) / min(seconds)


def exchange(down, up, cluster):
    """Seconds of a broadcast of `down` bytes and a reduction of `up` bytes, within the nodes and between them.

    LogGP (Alexandrov et al. 1995) of the algorithms that MPI libraries take for long messages (Thakur, Rabenseifner and Gropp
    2005): scatter and ring allgather; reduce-scatter by recursive halving and gather. In a node every byte is copied twice.
    """
    seconds = 0.0
    levels = (
        (cluster.nodes, cluster.latency, 1 / cluster.bandwidth),
        (cluster.ranks_a_node, MEMORY_LATENCY, 2 * cluster.crowding / cluster.copying),
    )
    for parties, latency, a_byte in levels:
        steps, share = int(np.ceil(np.log2(parties))), (parties - 1) / parties
        seconds += (steps + parties - 1) * latency + 2 * share * down * a_byte
        seconds += 2 * steps * latency + 2 * share * up * a_byte + share * up / cluster.copying
    return seconds


def loads(seconds, busy, ranks):
    """How long each rank works, float64 (ranks,), when clients of these seconds (cohort,) are assigned to ranks of which the
    first is `busy` for so many seconds before."""
    load = np.bincount(assign(seconds, np.ones(ranks), busy), weights=seconds, minlength=ranks)
    load[0] += busy
    return load
