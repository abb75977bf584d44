"""Measure what clients cost that do not train.

    python benchmarks/clients.py [--clients 1000000] [--cohort 1000] [--rounds 200]

Divides synthetic data over the clients: each draws 50 samples with replacement from its own mix of labels.
Then prints, each measured in separate processes:

1. seconds and memory until the first cohort is selected, and of rounds with a cohort of 1,000;
2. memory of a node by the number of its ranks: the sum of their proportional set sizes, which counts memory
   shared by ranks once;
3. resident memory over the rounds of a run with a cohort of 10;
4. bytes of the two messages of a round, from 10 to 10,000 clients.

Memory excludes the imports. Every rank has one thread.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

BASE = [
    "method=fedavg",
    "data.name=synthetic",
    "data.samples=50000",
    "data.size=8",
    "partition.scheme=dirichlet_client",
    "partition.replacement=true",
    "partition.samples=50",
    "training.epochs=1",
    "runtime.threads=1",
]


def memory(kind):
    """Megabytes of this process: Rss or Pss."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def job(overrides, every):
    """On each rank: run a simulation; rank 0 prints what all of them took as a line of JSON."""
    from genfl_mpi import Simulation
    from genfl_mpi.mpi import collectives

    comm = collectives.world()
    comm.Barrier()
    before, start, cpu = memory("Pss"), time.perf_counter(), time.process_time()
    simulation = Simulation(overrides=overrides)
    found = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - memory("Rss"),
        "rounds": [],
        "curve": [],
    }
    comm.Barrier()
    found["pss"] = memory("Pss") - before
    found["peak"] += found["pss"]
    for record in simulation:
        if comm.rank == 0:
            found["rounds"].append(record.columns["round_seconds"])
            found["bytes"] = int(record.columns["broadcast_bytes"]), int(record.columns["reduce_bytes"])
        if record.round % every == 0:
            found["curve"].append((record.round, memory("Rss")))
    ranks = comm.gather(found)
    if comm.rank == 0:
        print(json.dumps(ranks))


def measured(ranks, *overrides, every=20):
    launcher = [Path(sys.executable).with_name("mpirun"), "-n", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [*launcher, sys.executable, __file__, "--job", json.dumps([[*BASE, *overrides], every])],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--cohort", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(*json.loads(options.job))
        return

    clients = f"clients={options.clients}"
    print(f"{options.clients:,} clients, a cohort of {options.cohort:,}, 1 rank", flush=True)
    (one,) = measured(1, clients, f"cohort={options.cohort}", "rounds=3")
    print(
        f"  until the first cohort is selected: {one['seconds']:.1f} s ({one['cpu_seconds']:.1f} s of CPU), "
        f"{one['pss']:.0f} MB, at most {one['peak']:.0f} MB"
    )
    print(f"  rounds: {', '.join(f'{seconds:.1f}' for seconds in one['rounds'])} s", flush=True)

    print(
        f"\n{options.clients:,} clients: memory of a node\n  ranks  all ranks (MB)  each rank (MB)",
        flush=True,
    )
    for ranks in (1, 2, 4):
        each = [rank["pss"] for rank in measured(ranks, clients, "cohort=10", "rounds=1")]
        print(f"  {ranks:5d}  {sum(each):14.0f}  {', '.join(f'{one:.0f}' for one in each)}", flush=True)

    print(f"\n{options.clients:,} clients, a cohort of 10: resident memory of 1 rank, MB")
    (one,) = measured(1, clients, "cohort=10", f"rounds={options.rounds}", every=max(1, options.rounds // 10))
    print("  " + ", ".join(f"round {round}: {held:.0f}" for round, held in one["curve"]), flush=True)

    print(
        "\ncohort of 10: bytes of a round's messages, on 2 ranks\n  clients  to every rank  from every rank",
        flush=True,
    )
    for count in (10, 100, 1000, 10000):
        down, up = measured(2, f"clients={count}", "cohort=10", "rounds=1")[0]["bytes"]
        print(f"  {count:7,}  {down:13,}  {up:15,}", flush=True)


if __name__ == "__main__":
    main()
