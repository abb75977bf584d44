"""Measure how far generation and the clients' training overlap.

    python benchmarks/overlap.py [--ranks 2] [--repeats 3]

Runs the same round of GenFL with an empty bank twice: as usual on two ranks, and with all work on one rank,
one part after the other. Prints, from the results files, the time of generation and augmented training, the
time of the clients, and the round as a share of their sum: 0.5 is perfect overlap of equal halves, 1 is no
overlap. The load makes both parts take about equally long on the machine it was chosen on. The generator is
loaded in an earlier round.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py

# Round 1 loads the generator and measures speeds; round 2 is the one that counts.
LOAD = [
    "method=genfl",
    "rounds=2",
    "runtime.threads=1",
    "generation.per_round=5",
    "cohort=10",
    "checkpoint.every_rounds=2",
]


def one_run(ranks, folder):
    launcher = Path(sys.executable).with_name("mpirun")
    subprocess.run(
        [
            launcher,
            "-n",
            str(ranks),
            sys.executable,
            "-m",
            "genfl_mpi",
            *LOAD,
            f"output={folder}",
            f"generation.bank={folder}/bank",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with h5py.File(folder / "genfl_seed1.h5", swmr=True) as file:
        rounds = {name: file["rounds"][name][1] for name in file["rounds"]}
        clients = file["clients"]["seconds"][:][file["clients"]["round"][:] == 2].sum()
        return rounds["generate_seconds"] + rounds["augment_seconds"], clients, rounds["round_seconds"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("ranks  generate + augment (s)  clients (s)  round (s)  round / sum")
    for ranks in (1, options.ranks):
        shares = []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                generate, clients, whole = one_run(ranks, Path(folder))
            shares.append(whole / (generate + clients))
            print(f"{ranks:5d}  {generate:22.2f}  {clients:11.2f}  {whole:9.2f}  {shares[-1]:11.2f}")
        print(f"       median of {len(shares)}: {statistics.median(shares):.2f}")


if __name__ == "__main__":
    main()
