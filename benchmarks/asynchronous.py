"""Share of the time in which ranks are busy, in an asynchronous run and in synchronous rounds of its cohort.

    mpirun -n RANKS python benchmarks/asynchronous.py [--rounds 40] [key=value ...]

Concurrency is 8 clients per rank, the buffer 1 client per rank. A rank is busy unless it waits for a message:
1 minus the mean of `wait_seconds` over that of `round_seconds`, without the first tenth of the rounds.
"""

import argparse

from genfl_mpi import Simulation
from genfl_mpi.mpi import collectives


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options, comm = parser.parse_args(), collectives.world()
    common = [
        "method=fedavg",
        f"rounds={options.rounds}",
        f"clients={20 * comm.size}",
        f"cohort={comm.size}",
        "partition.alpha=0.3",
        "runtime.threads=1",
        "world={}",
        *options.settings,
    ]
    buffered = ["time.driver=fedbuff", f"time.concurrency={8 * comm.size}"]
    for name, more in (("synchronous", []), ("fedbuff", buffered)):
        columns = [record.columns for record in Simulation(overrides=[*common, *more]) if record.columns]
        kept = columns[len(columns) // 10 :]
        if comm.rank == 0:
            waited, passed = (sum(one[key] for one in kept) for key in ("wait_seconds", "round_seconds"))
            busy = 100 * (1 - waited / passed)
            print(f"{name:<12} {passed / len(kept):.3f} s a round, ranks busy {busy:.0f} %")


if __name__ == "__main__":
    main()
