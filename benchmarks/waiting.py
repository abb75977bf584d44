"""Measure what a user waits for.

    python benchmarks/waiting.py start|evaluation|generation|sweep|default [--repeats 3] [--data DATA]

start: seconds of a command whose runs are finished, beyond the start of Python and MPI.
evaluation: seconds per round, and the share of testing, with evaluation.every of 1 and 10.
generation: rounds in which images are missing, with generation.ranks=server and all, on 1, 2 and 4 ranks:
    their seconds, and these over the work of all ranks divided by the cores in use. With --data, CIFAR-10 in
    that folder.
sweep: a sweep on 64 ranks of one thread, oversubscribed, against `plan --sweep`.
default: the run without a configuration file on two ranks, with an empty bank.

Every rank has one thread. Each row is repeated in turn; a row lists all repeats.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

CORES = len(os.sched_getaffinity(0))
THREAD = "runtime.threads=1"


def run(ranks, *arguments, module=("-m", "genfl_mpi")):
    """Return the seconds and the output of a command on some ranks; without mpirun on one."""
    launcher = [Path(sys.executable).with_name("mpirun"), "-n", str(ranks)] if ranks > 1 else []
    start = time.perf_counter()
    done = subprocess.run(
        [*launcher, sys.executable, *module, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - start, done.stdout


def rounds_of(folder):
    """Return the columns of /rounds and /ranks of the only run in a folder."""
    with h5py.File(next(Path(folder).glob("*.h5"))) as file:
        return {table: {name: file[table][name][:] for name in file[table]} for table in ("rounds", "ranks")}


def row(name, values, unit="s"):
    print(f"{name:<42} {', '.join(f'{value:.2f}' for value in values)} {unit}", flush=True)


def start(options):
    """A finished sweep of three runs."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = [
            "rounds=1",
            THREAD,
            "generation.steps=2",
            f"output={folder}",
            f"generation.bank={folder}/bank",
        ]
        run(1, *sweep)
        code = ("-c", "from mpi4py import MPI")
        bare, whole = (
            [run(1, *rest, module=module)[0] for _ in range(options.repeats)]
            for rest, module in (((), code), (sweep, ("-m", "genfl_mpi")))
        )
    row("Python and MPI", bare)
    row("a finished sweep", whole)
    row("beyond Python and MPI", np.array(whole) - bare)


def evaluation(options):
    """A small cohort and a test set of 10,000 images."""
    base = ["method=fedavg", "data.name=synthetic", "data.samples=50000", "model.name=pfl_cnn", "cohort=5"]
    base += [
        "clients=1000",
        "partition.scheme=iid",
        "training.epochs=1",
        "training.batch_size=10",
        "rounds=20",
        THREAD,
    ]
    found = {1: [], 10: []}
    for _ in range(options.repeats):
        for every, seconds in found.items():
            with tempfile.TemporaryDirectory() as folder:
                run(2, *base, f"evaluation.every={every}", "evaluation.subset=1000", f"output={folder}")
                rounds = rounds_of(folder)["rounds"]
            share = rounds["evaluate_seconds"].sum() / rounds["round_seconds"].sum()
            seconds.append((rounds["round_seconds"].mean(), 100 * share))
    for every, seconds in found.items():
        row(f"evaluation.every={every}: a round", [one for one, _ in seconds])
        row(f"evaluation.every={every}: testing", [share for _, share in seconds], "%")


def generation(options):
    """GenFL in rounds that all miss images."""
    base = ["method=genfl", "rounds=4", "cohort=10", "generation.batch_size=10", "generation.cap=40", THREAD]
    if options.data:
        base += [
            "data.name=cifar10",
            f"data.root={options.data}",
            "data.public_pool=10000",
            "model.name=pfl_cnn",
        ]
        base += ["clients=100", "training.batch_size=10", "training.epochs=1"]
    cases = [(1, "server"), (2, "server"), (2, "all"), (4, "server"), (4, "all")]
    found = {case: [] for case in cases}
    for _ in range(options.repeats):
        for ranks, wanted in cases:
            with tempfile.TemporaryDirectory() as folder:
                settings = [
                    f"generation.ranks={wanted}",
                    f"output={folder}",
                    f"generation.bank={folder}/bank",
                ]
                run(ranks, *base, *settings)
                tables = rounds_of(folder)
            rounds, each = tables["rounds"], tables["ranks"]
            later = rounds["round"] > 1  # the first one loads the generator and knows no speed
            work = each["train_seconds"][each["round"] > 1].sum() + rounds["augment_seconds"][later].sum()
            shared = np.nan_to_num(each["generating_seconds"][each["round"] > 1]).sum()
            alone = rounds["generate_seconds"][later].sum() + rounds["generate_ahead_seconds"][later].sum()
            work += shared if wanted == "all" and ranks > 1 else alone
            work += ranks * rounds["evaluate_seconds"][later].sum()
            spent = rounds["round_seconds"][later].sum()
            found[ranks, wanted].append((spent / later.sum(), spent / (work / min(ranks, CORES))))
    for (ranks, wanted), seconds in found.items():
        row(f"{ranks} ranks, {wanted}: a round", [one for one, _ in seconds])
        row(f"{ranks} ranks, {wanted}: over work / cores", [ratio for _, ratio in seconds], "")


def sweep(options):
    """64 ranks on the cores of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        base = ["sweep.method=[fedavg,genfl]", "sweep.seed=[1,2,3,4]", "rounds=5", THREAD, "cohort=15"]
        base += [
            "data.name=synthetic",
            "data.samples=5000",
            "generation.checkpoint=digits",
            "generation.prompts=mnist",
        ]
        base += ["generation.cap=20", f"output={folder}", f"generation.bank={folder}/bank"]
        _, said = run(1, "plan", *base, "-n", "64", "--cores", str(CORES), "--sweep")
        print(re.search(r"time +(.*)", said)[0])
        row("measured, with start and files", [run(64, *base)[0]])


def default(options):
    """The study of the README."""
    seconds = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(run(2, f"output={folder}", f"generation.bank={folder}/bank")[0])
    row("default run, 2 ranks", seconds)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {part.__name__: part for part in (start, evaluation, generation, sweep, default)}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data", help="folder of CIFAR-10")
    options = parser.parse_args()
    parts[options.part](options)


if __name__ == "__main__":
    main()
