"""Seconds to price one round of a million clients, all of which train.

    python benchmarks/edge.py [--clients 1000000] [--repeats 3]

Draws the clients' hardware and the channel in both directions, divides the bandwidth in every available way,
and computes each client's seconds and joules. The deadline of least_energy is 1.5 times the earliest possible
time.
"""

import argparse
import statistics
import time

import numpy as np

from genfl_mpi.config.world import World
from genfl_mpi.edge import bandwidth, hardware
from genfl_mpi.edge.rounds import Work, draw_cohort, price_round


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    clients, deadline = np.arange(options.clients), None
    print("allocation    seconds, median  each")
    for allocation in sorted(bandwidth.ALLOCATIONS, key=lambda name: name == "least_energy"):
        world, spent = World(deadline_s=deadline, channel={"allocation": allocation}), []
        for _ in range(options.repeats):
            start = time.perf_counter()
            cohort = draw_cohort(world, hardware.draw_hardware(world, options.clients), 0, clients)
            priced = price_round(world, cohort, Work(flops=6.5e6 * 5 * 50, weights_bytes=423_464))
            spent.append(time.perf_counter() - start)
        if allocation == "min_max":
            deadline = 1.5 * priced.seconds
        print(
            f"{allocation:<12}  {statistics.median(spent):15.2f}  {', '.join(f'{one:.2f}' for one in spent)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
