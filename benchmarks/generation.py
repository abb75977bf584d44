"""Images a second when the bank is filled ahead of time.

    python benchmarks/generation.py [--repeats 3]

Fills an empty bank with the 300 images of the default configuration (20 steps, guidance 7, batches of 50) on
one rank with one thread, one rank with two threads, and two ranks with one thread each, in turn. Prints the
rate that `generate` reports, which excludes loading the pipeline.
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
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"{ranks:5d}  {threads:7d}  {statistics.median(values):17.2f}  {each}")


if __name__ == "__main__":
    main()
