"""Compare a run's time with the prediction of `plan`.

    python benchmarks/plan.py [--ranks 2] [--repeats 3]

For each of three configurations in turn, runs `plan` and then the run itself, with an empty bank, on the same
number of ranks with one thread each. Prints the seconds of all rounds as predicted and as recorded in the
results file, and their ratio.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py

CONFIGURATIONS = {
    "FedAvg, digits, CNN": ["method=fedavg", "rounds=15", "cohort=10"],
    "GenFL, digits, CNN": ["method=genfl", "rounds=15"],
    "FedAvg, 32x32 images, ResNet-18": [
        "method=fedavg",
        "rounds=4",
        "clients=100",
        "cohort=6",
        "data.name=synthetic",
        "data.samples=10000",
        "model.name=resnet18",
        "training.epochs=1",
    ],
}


def run(ranks, *arguments):
    launcher = Path(sys.executable).with_name("mpirun")
    command = [launcher, "-n", str(ranks), sys.executable, "-m", "genfl_mpi", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("configuration                    predicted (s)  measured (s)  predicted / measured", flush=True)
    for name, overrides in CONFIGURATIONS.items():
        ratios = []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                own = [*overrides, "runtime.threads=1", f"output={folder}", f"generation.bank={folder}/bank"]
                said = run(options.ranks, "plan", "-n", str(options.ranks), *own)
                predicted = float(re.search(r"a round, ([\d.,e+]+) in all", said)[1].replace(",", ""))
                run(options.ranks, *own)
                with h5py.File(next(Path(folder).glob("*.h5"))) as file:
                    measured = file["rounds/round_seconds"][:].sum()
            ratios.append(predicted / measured)
            print(f"{name:<32} {predicted:13.1f}  {measured:12.1f}  {ratios[-1]:20.2f}", flush=True)
        print(f"{'median':<32} {'':13}  {'':12}  {statistics.median(ratios):20.2f}", flush=True)


if __name__ == "__main__":
    main()
