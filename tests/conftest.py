"""What the tests share: a tiny run, and a way to start it on any number of ranks."""

import atexit
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ranks import Server

import genfl_mpi
from genfl_mpi.results import layout, progress

# A run of seconds: two rounds, real digits, the shipped generator at few steps. Generator and prompts are
# set for tests that replace the digits by other images of ten classes.
TINY = [
    "method=genfl",
    "rounds=2",
    "clients=6",
    "cohort=3",
    "training.epochs=1",
    "runtime.threads=1",
    "generation.checkpoint=digits",
    "generation.prompts=mnist",
    "checkpoint.keep=null",
    "generation.per_round=1",
    "generation.cap=2",
    "generation.steps=2",
    "generation.batch_size=10",
]


@pytest.fixture(scope="session")
def bank(tmp_path_factory):
    """A bank for the tests that do not test generation."""
    return tmp_path_factory.mktemp("bank")


@pytest.fixture
def tiny(tmp_path, bank):
    """Overrides of the embedded default for a tiny run that writes below tmp_path."""
    return [*TINY, f"output={tmp_path}/results", f"generation.bank={bank}"]


def small_sweep(folder, bank):
    """FedAvg and GenFL, two seeds of two rounds each, in a folder, which is returned."""
    from genfl_mpi.cli import main

    overrides = [one for one in TINY if not one.startswith("method")]
    assert (
        main(
            [
                *overrides,
                "sweep.method=[fedavg,genfl]",
                "sweep.seed=[1,2]",
                f"output={folder}",
                f"generation.bank={bank}",
            ]
        )
        == 0
    )
    return folder


def command(ranks, *arguments):
    """`python *arguments` under mpirun, or without it if `ranks` is None."""
    if ranks is None:
        return [sys.executable, *map(str, arguments)]
    extra = ["--allow-run-as-root", "--oversubscribe"] if is_open_mpi() else []
    return [launcher(), *extra, "-n", str(ranks), sys.executable, *map(str, arguments)]


def launcher():
    """The mpirun beside this Python, if there is one, else the site's."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    assert found, "no mpirun: install the extra [mpich], or an MPI of the site"
    return found


@cache
def is_open_mpi():
    return "Open MPI" in subprocess.run([launcher(), "--version"], capture_output=True, text=True).stdout


def mpirun(ranks, *arguments, timeout=300, own_processes=False, **environment):
    """Run a `command` to its end, and return when all its processes are gone.

    own_processes: as in `prepare`.
    """
    started, environment = prepare(ranks, arguments, environment, own_processes)
    gone, held = os.pipe()  # read to its end when no process has `held` any more
    if job := json.loads(environment.get("JOB", "{}")):
        job |= {"held": [held], "name": f"{next(NUMBERS)}"}
        environment["JOB"] = json.dumps(job)
    with open(gone, "rb") as gone:
        try:
            done = subprocess.run(
                started, capture_output=True, text=True, timeout=timeout, env=environment, pass_fds=[held]
            )
        finally:
            os.close(held)
        gone.read()
    if job:
        server().reap(job["name"])  # a process closes its files one after another
    return done


NUMBERS = itertools.count()
AT_START = dict(os.environ)
BEFORE_TEST = {}  # variables
FOLLOWED = {"COLUMNS", "PYTEST_CURRENT_TEST", "PYTHONPATH"}  # a fork gets these in time
# Libraries set these while they are imported, here as in the server.
FOLLOWED |= {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"}


def pytest_runtest_setup():
    BEFORE_TEST.clear()
    BEFORE_TEST.update(os.environ)


def prepare(ranks, arguments, environment=(), own_processes=False):
    """Return what starts a `command`, and its environment: this process's and the variables `environment`.

    The ranks will be forks of the `server`, which need not import anything, where that makes no difference.
    own_processes: start Python itself on each rank, for tests of the start or of signals."""
    all_variables = {**os.environ, **dict(environment)}
    names = {*os.environ, *BEFORE_TEST}
    changed = {name for name in names if os.environ.get(name) != BEFORE_TEST.get(name)}
    is_known = tuple(arguments[:2]) == ("-m", "genfl_mpi") or str(arguments[0]).endswith(".py")
    if own_processes or not is_known or not changed <= FOLLOWED or is_open_mpi():
        return command(ranks, *arguments), all_variables
    job = {"arguments": list(map(str, arguments)), "folder": os.getcwd()}
    return command(ranks, *server().rank_command()), {**all_variables, "JOB": json.dumps(job)}


@cache
def server():
    """The `Server` of all tests, started when it is first needed."""
    folder = tempfile.mkdtemp(prefix="ranks")  # the path of a socket must be short
    package = Path(genfl_mpi.__file__).parents[1]  # what is tested
    path = os.pathsep.join([str(package), AT_START.get("PYTHONPATH", "")])
    started = Server(f"{folder}/socket", environment={**AT_START, "PYTHONPATH": path})
    atexit.register(lambda: (started.close(), shutil.rmtree(folder)))
    return started


# A run whose rounds take milliseconds, for tests of everything but learning.
FAST = [
    "method=fedavg",
    "data.name=synthetic",
    "data.samples=200",
    "data.size=8",
    "clients=6",
    "cohort=3",
    "training.epochs=1",
    "runtime.threads=1",
    "checkpoint.keep=null",
]


@pytest.fixture
def fast(tmp_path):
    return [*FAST, f"output={tmp_path}/results"]


def with_new_checksums(file):
    """Give an open results file that a test has edited the checksums of what it has now."""
    for table, columns in layout.TABLES.items():
        rows, data = len(file[table][next(iter(columns))]), file[layout.CHECKSUMS][table]
        data.resize(min(rows, 1), axis=0)
        if rows:
            data[0] = np.array([rows, *(layout.checksum(file[table][name][:rows]) for name in columns)])


def interrupt(patch, number):
    """Let a run fail before its clients train in round `number`, counted from 0. patch: a MonkeyPatch."""
    from genfl_mpi.federation.worker import Worker

    train = Worker.train

    def interrupted(self, round, clock):
        if round == number:
            raise MemoryError
        return train(self, round, clock)

    patch.setattr(Worker, "train", interrupted)


def until(holds, seconds=600):
    """Wait until the function `holds` returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(5e-4)
    return found


class Job:
    """A job of the command line on some ranks, that is to be disturbed.

    results: its results file. own_processes: as in `prepare`."""

    def __init__(self, ranks, overrides, results, log, own_processes=False, **environment):
        self.results, self.log = results, log
        self.before = {about["pid"] for about in progress.read(results)}
        started, environment = prepare(ranks, ("-m", "genfl_mpi", *overrides), environment, own_processes)
        with open(log, "w") as output:
            self.process = subprocess.Popen(started, stdout=output, stderr=output, env=environment)

    def said(self):
        return Path(self.log).read_text()

    def rank(self, rank):
        """What the rank says of itself in its progress file; None before it says anything."""
        return next((about for about in self.all_ranks() if about["rank"] == rank), None)

    def all_ranks(self):
        return [about for about in progress.read(self.results) if about["pid"] not in {None, *self.before}]

    def after_round(self, round):
        """Wait until the rank 0 is beyond a round."""
        until(lambda: self.process.poll() is not None or (about := self.rank(0)) and about["round"] > round)
        assert self.process.poll() is None, self.said()

    def end(self):
        """The exit status, which must come within ten seconds, with no rank left."""
        pids = [about["pid"] for about in self.all_ranks()]
        status = self.process.wait(timeout=10)
        until(lambda: not any(alive(pid) for pid in pids), 10)
        return status


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
