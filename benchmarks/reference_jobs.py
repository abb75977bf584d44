"""Compare the floor, genfl_mpi, Flower and pfl-research on the reference jobs R1 and R2.

    python benchmarks/reference_jobs.py [R1 R2] [--repeats 5] [--rounds 3] [--peers FOLDER] [--output FOLDER]

The contestants run in turn, and this repeats. Each may use all cores, in the layout that suits it best:

- the floor in the fastest of its layouts, memory formats and optimizers, which a search finds first;
- genfl_mpi as installed, with one rank per core;
- Flower with one actor per core, and with one actor for all cores;
- pfl-research under torchrun with one process per core, and in one process.

The peers get the floor's memory format. Their packages are installed into a separate environment (--peers),
with genfl_mpi's version of torch. The job `trial` takes seconds. A round is training and aggregation;
genfl_mpi's evaluation time is reported separately. All figures go to OUTPUT/figures.json.
"""

import argparse
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from genfl_mpi.mpi import collectives, launchers
from genfl_mpi.results import environment
from jobs import JOBS

HERE = Path(__file__).parent
PHASES = ("train", "wait", "reduce", "broadcast", "evaluate")


def has_packages(python, *packages):
    """Whether these packages can be imported by `python`, the path of an interpreter that may not exist."""
    check = [python, "-c", f"import {', '.join(packages)}"]
    return Path(python).exists() and subprocess.run(check, capture_output=True).returncode == 0


def peers_python(folder):
    """The Python of the peers' environment, which is made if it is not there."""
    python = folder / "bin/python"
    if not has_packages(python, "flwr", "ray", "pfl", "torch", "torchvision"):
        print(f"making the peers' environment in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        packages = [
            "flwr[simulation]",
            "pfl[pytorch]",
            *(f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "torchvision")),
        ]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def versions(python):
    """Versions of what the peers' environment has."""
    code = (
        "import json; from importlib.metadata import version as v; "
        "print(json.dumps({n: v(n) for n in ('flwr', 'ray', 'pfl', 'torch')}))"
    )
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def told(command, limit):
    """Run a contestant and return the figures of its rounds, dicts of seconds.

    Raises RuntimeError with the last lines of its output if it prints no figures.
    """
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, env=variables, timeout=limit
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took more than {limit} s") from None
    figures = [
        json.loads(line.partition("FIGURES ")[2]) for line in done.stdout.splitlines() if "FIGURES " in line
    ]
    if not figures:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-5:]))
    return figures


def overrides(name, rounds):
    """genfl_mpi's settings of a job."""
    job = JOBS[name]
    return [
        "method=fedavg",
        f"rounds={rounds}",
        f"clients={job.clients}",
        f"cohort={job.cohort}",
        "data.name=synthetic",
        "data.size=32",
        f"data.samples={job.clients * job.samples}",
        "partition.scheme=iid",
        f"model.name={job.network}",
        "training.epochs=1",
        f"training.batch_size={job.batch}",
        f"training.lr={job.lr}",
    ]


def genfl_command(ranks):
    """The words that start genfl_mpi on this number of ranks."""
    beside = Path(sys.executable).with_name("mpirun")
    launcher = str(beside) if beside.exists() else "mpirun"
    return [launcher, "-n", str(ranks), sys.executable, "-m", "genfl_mpi"]


def genfl(name, ranks, rounds, limit, settings=()):
    """Run genfl_mpi with its defaults, except for `settings`, and return the rounds of its results file.

    Leaves out the first round, which warms up.
    """
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        command = [*genfl_command(ranks), *overrides(name, rounds + 1), *settings, f"output={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            raise RuntimeError("\n".join(done.stderr.splitlines()[-5:]))
        with h5py.File(Path(folder) / "fedavg_seed1.h5", "r") as file:
            columns = {phase: file[f"rounds/{phase}_seconds"][1:] for phase in (*PHASES, "round")}
    return [
        {
            **{phase: float(columns[phase][row]) for phase in PHASES},
            "round": float(columns["round"][row] - columns["evaluate"][row]),
        }
        for row in range(rounds)
    ]


def search(name, layouts, limit):
    """Return the floor's fastest layout, format and optimizer as options, and all measurements.

    Measures two shortened rounds of each combination.
    """
    job, tried = JOBS[name], []
    for processes, threads in layouts:
        clients = processes * max(1, min(job.cohort // processes, 40 * job.batch // job.samples))
        command = [
            sys.executable,
            HERE / "floor.py",
            name,
            "--processes",
            processes,
            "--threads",
            threads,
            "--clients",
            clients,
            "--rounds",
            2,
        ]
        tried += [
            figure | {"processes": processes, "threads": threads, "round": figure["round"] / clients}
            for figure in told(command, limit)
        ]
    best = min(tried, key=operator.itemgetter("round"))
    return [
        "--processes",
        best["processes"],
        "--threads",
        best["threads"],
        "--formats",
        best["format"],
        "--optimizers",
        best["optimizer"],
    ], tried


def contestants(name, best, cores, rounds, python, limit):
    """The functions that each run one contestant once, by its name."""
    memory_format = best[best.index("--formats") + 1]
    common = [name, "--format", memory_format, "--rounds", rounds]
    flower, pfl = ([python, HERE / "peers" / file, *common] for file in ("flower.py", "pfl_research.py"))
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", cores, *pfl[1:]]
    return {
        "floor": lambda: told([sys.executable, HERE / "floor.py", name, *best, "--rounds", rounds], limit),
        "genfl_mpi": lambda: genfl(name, cores, rounds, limit),
        f"Flower, {cores} actors": lambda: told([*flower, "--actors", cores], limit),
        f"Flower, 1 actor of {cores} threads": lambda: told([*flower, "--threads", cores], limit),
        f"pfl-research, {cores} processes": lambda: told(torchrun, limit),
        f"pfl-research, {cores} threads": lambda: told([*pfl, "--threads", cores], limit),
    }


def spread(values):
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})" if values else "failed"


def table(name, measured):
    """Return the lines of a job's table.

    measured: for each contestant the rounds of each repeat, lists of lists of dicts. A ratio compares medians
    of the same repeat, because these were measured right after each other.
    """
    rounds = {
        who: [statistics.median(figure["round"] for figure in repeat) for repeat in repeats]
        for who, repeats in measured.items()
    }
    lines = [
        f"\n{name}: {JOBS[name]}",
        "",
        "| contestant | seconds a round | of the floor | of genfl_mpi | " + " | ".join(PHASES) + " |",
        "|---" * (4 + len(PHASES)) + "|",
    ]
    for who, repeats in measured.items():
        cells = [spread(rounds[who])]
        cells += [
            spread([own / other for own, other in zip(rounds[who], rounds[against])])
            for against in ("floor", "genfl_mpi")
        ]
        flat = [figure for repeat in repeats for figure in repeat]
        cells += [
            f"{statistics.median(figure[phase] for figure in flat):.3g}" if flat and phase in flat[0] else ""
            for phase in PHASES
        ]
        lines.append(f"| {who} | " + " | ".join(cells) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "jobs", nargs="*", default=["R1", "R2"], metavar="JOB", help="R1, R2 or trial; default: R1 R2"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a repeat, after one that warms up")
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path.home() / ".cache/genfl_mpi/peers",
        help="folder of the peers' environment",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/reference_jobs"), help="folder of the figures"
    )
    parser.add_argument("--limit", type=int, default=1800, help="seconds after which a contestant has failed")
    options = parser.parse_args()
    if unknown := set(options.jobs) - set(JOBS):
        parser.error(f"there is no job {unknown.pop()}; jobs are {', '.join(JOBS)}")
    cores, python = len(os.sched_getaffinity(0)), peers_python(options.peers)
    about = {
        **environment.describe(
            launchers.command(1, os.environ),
            collectives.library(),
            [platform.node()] * cores,
            cores,
            1,
            "cpu",
        ),
        "peers": versions(python),
        "load": os.getloadavg(),
    }
    print(about, flush=True)
    record = {
        "about": about,
        "options": {name: str(value) for name, value in vars(options).items()},
        "jobs": {},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.jobs:
        best, tried = search(name, sorted({(cores, 1), (1, cores)}), options.limit)
        print(f"{name}: the floor's fastest is {' '.join(map(str, best))}", flush=True)
        runs = contestants(name, best, cores, options.rounds, python, options.limit)
        measured, failed = {who: [] for who in runs}, {}
        for repeat in range(options.repeats):
            for who, run in runs.items():
                if who not in failed:
                    try:
                        measured[who].append(run())
                        seconds = spread([one["round"] for one in measured[who][-1]])
                        print(f"{name} {repeat + 1}/{options.repeats} {who}: {seconds} s", flush=True)
                    except (RuntimeError, subprocess.TimeoutExpired) as error:
                        failed[who] = str(error)
                        print(f"{name} {who} failed: {error}", flush=True)
                record["jobs"][name] = {"search": tried, "floor": best, "seconds": measured, "failed": failed}
                (options.output / "figures.json").write_text(json.dumps(record, indent=1))
        print("\n".join(table(name, measured)), flush=True)


if __name__ == "__main__":
    main()
