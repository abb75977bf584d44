"""Calculate what rank groups that host cells would save and cost, against clients of any cell on any rank.

    python benchmarks/tiers.py [--rounds 200] [--weights 11191242]

Nothing is trained. Cohorts are drawn from 1,000 Dirichlet(0.1) clients in a world with cells; a client costs
its samples. On any rank: longest processing time first over all ranks, as in a run. In groups: each cell
belongs to one of min(cells, ranks) groups, whose ranks and cells are divided by the samples of the cells'
clients; a client trains on a rank of its cell's group. Prints for each

- the mean over rounds of the longest rank's work over the mean of all ranks;
- megabytes to and from a rank other than 0: in groups, the cloud's model and those of the group's cells;
- seconds of the two messages by the cost model of `plan`, four ranks a node, 100 Gbit/s between nodes. In
  groups, at least the time in which rank 0 sends and receives the models of all cells once, which both need.

The last column is the break-even: the seconds of training per round and rank, on average, above which groups
are slower.
"""

import argparse

import numpy as np

from genfl_mpi.config.loading import single
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.edge import cells as edge_cells
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.mpi import collectives
from genfl_mpi.mpi.round_time import Cluster, exchange
from genfl_mpi.mpi.schedule import assign
from genfl_mpi.util import streams

CLIENTS, RANKS_PER_NODE = 1000, 4
CASES = ((4, 8, 4), (4, 100, 4), (4, 100, 16), (16, 100, 16), (16, 500, 16), (16, 500, 64))


def divide(loads, ranks):
    """Return the group of each cell, and the ranks of each group, by the cells' loads."""
    groups = assign(loads, np.ones(min(len(loads), ranks)), 0.0)
    shares = np.bincount(groups, loads)
    sizes = np.ones(len(shares), dtype=int)
    for _ in range(ranks - len(shares)):
        sizes[(shares / sizes).argmax()] += 1
    return groups, sizes


def longest_in_groups(costs, group, sizes):
    """Return the work of the longest rank if clients train in their groups."""
    longest = 0.0
    for one, ranks in enumerate(sizes):
        own = costs[group == one]
        longest = max(longest, np.bincount(assign(own, np.ones(ranks), 0.0), own, ranks).max())
    return longest


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--weights", type=int, default=11_191_242)
    options = parser.parse_args()
    print("                      longest / mean    MB per rank     exchange (s)   break-even")
    print("cells  cohort  ranks     any  groups     any  groups     any  groups   (s)", flush=True)
    for cells, cohort, ranks in CASES:
        run = single(
            overrides=[
                "method=fedavg",
                "data.name=synthetic",
                "data.samples=50000",
                "data.size=8",
                f"clients={CLIENTS}",
                f"cohort={cohort}",
                "partition.scheme=dirichlet_client",
                "partition.alpha=0.1",
                "time.driver=tiers",
                f"world.cells={cells}",
            ]
        )
        config = resolve(run, collectives.single())
        samples = np.diff(load_and_divide(config)["pointers"]).astype(float)
        of_client = edge_cells.nearest(config.world, CLIENTS)[0]
        groups, sizes = divide(np.bincount(of_client, samples, cells), ranks)
        works = []
        for round in range(options.rounds):
            ids = streams.generator(1, "benchmark", round).permutation(CLIENTS)[:cohort]
            costs = samples[ids]
            whole = np.bincount(assign(costs, np.ones(ranks), 0.0), costs, ranks).max()
            works.append(
                np.array([whole, longest_in_groups(costs, groups[of_client[ids]], sizes)])
                * ranks
                / costs.sum()
            )
        any_rank, in_groups = np.mean(works, axis=0)
        down, up = 4 * options.weights * (1 + cells), 8 * options.weights * cells
        hosted = np.bincount(groups).max()
        part = 4 * options.weights * (1 + hosted), 8 * options.weights * hosted
        nodes = max(1, ranks // RANKS_PER_NODE)
        cluster = Cluster(ranks, nodes, RANKS_PER_NODE, 1, 2e-6, 12.5e9, 20e9)
        seconds = exchange(down, up, cluster)
        least = (down + up) / (cluster.bandwidth if nodes > 1 else cluster.copy_rate)
        least = max(least, exchange(*part, cluster))
        even = (seconds - least) / (in_groups - any_rank)
        print(
            f"{cells:5}  {cohort:6}  {ranks:5}  {any_rank:6.2f}  {in_groups:6.2f}  {(down + up) / 1e6:6.0f}  "
            f"{sum(part) / 1e6:6.0f}  {seconds:6.2f}  {least:6.2f}   {even:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
