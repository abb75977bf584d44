"""Measure how evenly a round's work is divided over the ranks.

    python benchmarks/balance.py [--ranks 2,4] [--rounds 20]

Runs FedAvg and GenFL (with an empty bank) on 100 Dirichlet(0.1) clients, with five clients per rank in a
cohort and one thread per rank. Prints medians over all rounds but the first, from the results files:

- the work of the busiest rank over the bar, which is the largest of 1.1 times the mean over the ranks, the
  longest single client, and the server's own work;
- the work of the busiest rank over the mean;
- the mean waiting time of a rank as a share of the round.

Rank 0's work includes generation and training of the augmented model. With more ranks than cores, the ranks
slow each other down.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np


def one_run(method, ranks, rounds):
    with tempfile.TemporaryDirectory() as folder:
        launcher = Path(sys.executable).with_name("mpirun")
        subprocess.run(
            [
                launcher,
                "-n",
                str(ranks),
                sys.executable,
                "-m",
                "genfl_mpi",
                f"method={method}",
                f"rounds={rounds}",
                "clients=100",
                f"cohort={5 * ranks}",
                "partition.min_samples=1",
                "generation.per_round=1",
                "generation.batch_size=10",
                "runtime.threads=1",
                f"output={folder}",
                f"generation.bank={folder}/bank",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with h5py.File(next(Path(folder).glob("*.h5"))) as file:
            load = file["ranks/train_seconds"][:].reshape(rounds, ranks)
            server = file["rounds/generate_seconds"][:] + file["rounds/augment_seconds"][:]
            load[:, 0] += server
            waiting = (
                file["ranks/wait_seconds"][:].reshape(rounds, ranks).mean(1) / file["rounds/round_seconds"][:]
            )
            client = file["clients/seconds"][:].reshape(rounds, -1).max(1)
    longest, mean = load.max(1), load.mean(1)
    return np.array([longest / np.max([1.1 * mean, client, server], axis=0), longest / mean, 100 * waiting])[
        :, 1:
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    print("method  ranks  longest / bar  longest / mean  waiting (%)", flush=True)
    for ranks in map(int, options.ranks.split(",")):
        for method in ("fedavg", "genfl"):
            bar, mean, waiting = np.median(one_run(method, ranks, options.rounds), axis=1)
            print(f"{method:<6}  {ranks:5d}  {bar:13.2f}  {mean:14.2f}  {waiting:11.1f}", flush=True)


if __name__ == "__main__":
    main()
