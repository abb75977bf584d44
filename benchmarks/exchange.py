"""Compare a round's exchange with a bare broadcast and reduction.

    python benchmarks/exchange.py [--ranks 2,4] [--weights 13994,1626442,11181642] [--repeats 20]

For each number of ranks and of weights, alternates between the two messages of a round as a run sends them
(weights, the cohort's plan, a row per client and rank, a cohort of 50) and a bare Bcast of the float32
weights with a bare Reduce of as many 64-bit integers. Prints the medians over the repeats, each timed between
two barriers of all ranks, and their ratio. With more ranks than cores, MPI's busy waiting takes processor
time from other ranks, and the benchmark measures the operating system.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def job(weights, repeats):
    import numpy as np
    from mpi4py import MPI

    from genfl_mpi.federation.messages import Broadcast, Reduction
    from genfl_mpi.mpi import collectives

    comm = collectives.world()
    down, up = Broadcast(weights, 50, {}), Reduction(weights, 50, comm.size, {})
    bare_down, bare_up, target = (
        np.zeros(weights, np.float32),
        np.ones(weights, np.int64),
        np.empty(weights, np.int64),
    )

    def exchange():
        collectives.broadcast(comm, down.buffer)
        collectives.wait_for_all(comm)
        collectives.reduce_sum(comm, up.buffer)

    def bare():
        comm.Bcast([bare_down, MPI.FLOAT], root=0)
        comm.Reduce(
            [bare_up, MPI.INT64_T], [target, MPI.INT64_T] if comm.rank == 0 else None, op=MPI.SUM, root=0
        )

    seconds = {exchange: [], bare: []}
    for repeat in range(repeats + 2):
        for function, found in seconds.items():
            comm.Barrier()
            start = time.perf_counter()
            function()
            comm.Barrier()
            if repeat > 1:  # the first touch the memory
                found.append(time.perf_counter() - start)
    if comm.rank == 0:
        ours, theirs = (statistics.median(seconds[function]) for function in (exchange, bare))
        low, _, high = statistics.quantiles([one / two for one, two in zip(*seconds.values())], n=4)
        print(
            f"{comm.size:5d}  {weights:11,}  {1000 * ours:14.2f}  {1000 * theirs:9.2f}  "
            f"{ours / theirs:5.2f}  {low:.2f} to {high:.2f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--weights", default="13994,1626442,11181642")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(int(options.weights), options.repeats)
        return
    launcher = Path(sys.executable).with_name("mpirun")
    print(
        f"{len(os.sched_getaffinity(0))} cores\n"
        "ranks      weights   exchange (ms)  bare (ms)  ratio  middle half of ratios",
        flush=True,
    )
    for ranks in options.ranks.split(","):
        for weights in options.weights.split(","):
            subprocess.run(
                [
                    launcher,
                    "-n",
                    ranks,
                    sys.executable,
                    __file__,
                    "--job",
                    "--weights",
                    weights,
                    "--repeats",
                    str(options.repeats),
                ],
                check=True,
            )


if __name__ == "__main__":
    main()
