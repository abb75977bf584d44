"""Images a second when the bank is filled ahead of time.

    python benchmarks/generation.py [--repeats 3]

fills an empty bank with the 300 images of the default configuration (20 steps, guidance 7, batches of 50) on one rank with
one thread, one rank with two, and two ranks with one, in turn, and prints what `generate` says of each: the pipeline's
loading is not counted.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

LAYOUTS = ((1, 1), (1, 2), (2, 1))  # ranks, threads


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    launcher, rates = Path(sys.executable).with_name("mpirun"), defaultdict(list)
    for _ in range(repeats):
        for ranks, threads in LAYOUTS:
            with tempfile.TemporaryDirectory() as bank:
                done = subprocess.run(
                    [
                        launcher,
                        "-n",
                        str(ranks),
                        sys.executable,
                        "-m",
                        "genfl_mpi",
                        "generate",
                        "method=genfl",
                        f"runtime.threads={threads}",
                        f"generation.bank={bank}",
                    ],
                    check=True,
                    capture_output=True,
                    text=True,
                )
            print(done.stdout.partition("; bank")[0], flush=True)
            rates[ranks, threads].append(float(re.search(r"([\d.]+) images/s", done.stdout)[1]))
    print("\nranks  threads  images/s (median)  each")
    for (ranks, threads), values in rates.items():
        print(
            f"{ranks:5d}  {threads:7d}  {statistics.median(values):17.2f}  {', '.join(f'{value:.2f}' for value in values)}"
        )


if __name__ == "__main__":
    main()
