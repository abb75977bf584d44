"""The ranks of the tests, which are forks of a server, do what processes that Python starts would."""

import fcntl
import re

import pytest
from conftest import FAST, mpirun
from ranks import without_leaks

from genfl_mpi.results import reader

FRESH, FORKS = {"own_processes": True}, {}

HERE = """
import json, os, sys, __main__
print(json.dumps([__name__, __main__.__file__, sys.argv, sys.orig_argv, os.getcwd(), sys.path[:2]]))
print(os.environ["PYTHONPATH"], "JOB" in os.environ, sys.stdin.read())
"""
RANK = "from genfl_mpi.mpi import collectives, failing\ncomm = collectives.world()\n"
ENDS = {
    "together": RANK + "import sys\ncomm.rank or print('one')\nsys.exit(3)",
    "words": RANK + "import sys\nif comm.rank: sys.exit('no')",
    "exception": RANK + "if comm.rank: raise ValueError('no')",
    "aborted": RANK
    + "import time\nfailing.exit_status(comm, lambda: time.sleep(60) if comm.rank else 1 / 0)",
    "killed": RANK + "import os\nif comm.rank: os.kill(os.getpid(), 9)\ncomm.Barrier()",
    "at exit": RANK + "import atexit\nif not comm.rank:\n  atexit.register(print, 'late')\n  print('early')",
}


@pytest.mark.slow
def test_a_run_on_forks_is_that_of_processes(tmp_path):
    done = {}
    for name, how in (("fresh", FRESH), ("forks", FORKS)):
        ended = mpirun(2, "-m", "genfl_mpi", *FAST, "rounds=2", f"output={tmp_path}/{name}", **how)
        shown = re.sub(
            r"[\d.]+ s\b|\d+ %| +[\d.]+ +1$", "", ended.stdout.replace(f"{tmp_path}/{name}", ""), flags=re.M
        )
        done[name] = ended.returncode, shown, ended.stderr
    assert done["fresh"] == done["forks"] and done["forks"][0] == 0
    results = [reader.digests(tmp_path / name / "fedavg_seed1.h5") for name in done]
    assert results[0] == results[1]


def test_a_refusal_on_forks_is_that_of_processes(tmp_path):
    arguments = "-m", "genfl_mpi", "cohort=99", f"output={tmp_path}"
    fresh, forks = (mpirun(2, *arguments, **how) for how in (FRESH, FORKS))
    assert (fresh.returncode, fresh.stdout, fresh.stderr) == (forks.returncode, forks.stdout, forks.stderr)
    assert forks.returncode == 2 and forks.stderr.count("\n") == 1


@pytest.mark.parametrize("end", ENDS)
def test_forks_end_as_processes_do(end, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ENDS[end])

    def ended(how):
        """Return status, output and errors, without process ids, the frames of what runs the script, and the
        line that MPI prints while it aborts, which the launcher may lose."""
        done = mpirun(2, script, timeout=60, **how)
        errors = [
            line
            for line in without_leaks(done.stderr).splitlines()
            if not re.match(r'  File (?!.*script.py)|    |  File "<frozen|Abort\(', line)
        ]
        return done.returncode, re.sub(r"PID \d+", "", done.stdout), errors

    assert ended(FRESH) == ended(FORKS)


def test_a_fork_finds_what_a_process_would(tmp_path, monkeypatch):
    script = tmp_path / "apart/script.py"
    script.parent.mkdir()
    script.write_text(HERE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "more"), prepend=":")
    fresh, forks = (mpirun(1, script, "a b", "", **how) for how in (FRESH, FORKS))
    assert (fresh.stdout, fresh.stderr) == (forks.stdout, forks.stderr) and "apart" in forks.stdout


def test_nothing_of_a_fork_is_left_for_the_next(tmp_path):
    spoiling = tmp_path / "spoiling.py"
    spoiling.write_text("import genfl_mpi.cli, numpy\ngenfl_mpi.cli.COMMANDS.clear()\nnumpy.random.seed(1)\n")
    assert mpirun(1, spoiling).returncode == 0
    assert mpirun(1, "-m", "genfl_mpi", "--help").returncode == 0


def test_no_process_is_left_when_mpirun_returns(tmp_path):
    """Not of a rank that was killed, either: its locks are free. (Those of a process of Python may take
    microseconds more.)"""
    script = tmp_path / "leaving.py"
    script.write_text(
        f"import fcntl, time\n{RANK}file = open('{tmp_path}/lock' + str(comm.rank), 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\ncomm.Barrier()\ncomm.rank or comm.Abort(5)\ntime.sleep(60)"
    )
    assert mpirun(2, script).returncode == 5
    for rank in (0, 1):
        with open(f"{tmp_path}/lock{rank}", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
