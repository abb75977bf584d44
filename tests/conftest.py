"""What the tests share: a tiny run, and a way to start it on any number of ranks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# A run of seconds: two rounds, real digits, the shipped generator at few steps.
TINY = [
    "method=genfl", "rounds=2", "clients=6", "cohort=3", "training.epochs=1", "runtime.threads=1",
    "generation.per_round=1", "generation.cap=2", "generation.steps=2", "generation.batch_size=10",
]


@pytest.fixture(scope="session")
def bank(tmp_path_factory):
    """A bank for the tests that do not test generation."""
    return tmp_path_factory.mktemp("bank")


@pytest.fixture
def tiny(tmp_path, bank):
    """Overrides of the embedded default for a tiny run that writes below tmp_path."""
    return [*TINY, f"output={tmp_path}/results", f"generation.bank={bank}"]


def command(ranks, *arguments):
    """`python *arguments` under mpirun: the launcher beside this Python, if there is one, else the site's."""
    beside = Path(sys.executable).with_name("mpirun")
    launcher = str(beside) if beside.exists() else shutil.which("mpirun")
    assert launcher, "no mpirun: install the extra [mpich], or an MPI of the site"
    extra = ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in _version_of(launcher) else []
    return [launcher, *extra, "-n", str(ranks), sys.executable, *map(str, arguments)]


def mpirun(ranks, *arguments, timeout=300, **environment):
    """Run a `command` to its end."""
    return subprocess.run(command(ranks, *arguments), capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment})


def _version_of(launcher):
    return subprocess.run([launcher, "--version"], capture_output=True, text=True).stdout
