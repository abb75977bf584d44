"""Send SIGTERM, SIGINT or SIGUSR1 to one rank or the launcher.

The run writes a checkpoint and exits; the same command continues it.
"""

import os
import signal
from contextlib import suppress

import pytest
from conftest import FAST, Job, is_open_mpi, mpirun, until

from genfl_mpi.cli import main
from genfl_mpi.results import checkpoint, progress, reader


@pytest.mark.parametrize(
    ("name", "ranks", "to", "status"),
    [
        ("SIGTERM", 2, "launcher", 75),
        pytest.param("SIGINT", 2, "launcher", 130, marks=pytest.mark.slow),
        pytest.param("SIGUSR1", 2, "launcher", 75, marks=pytest.mark.slow),
        ("SIGTERM", 2, 1, 75),
        ("SIGINT", 1, 0, 130),
    ],
)
def test_a_run_that_is_asked_to_leave_is_continued(name, ranks, to, status, tmp_path):
    if to == "launcher" and name != "SIGUSR1" and is_open_mpi():
        pytest.skip(f"after {name}, Open MPI's mpirun leaves the ranks a fifth of a second, and kills them")
    results = tmp_path / "cut/fedavg_seed1.h5"
    overrides = [*FAST, "checkpoint.every_rounds=1000"]
    run = [*overrides, "rounds=5000", f"output={tmp_path}/cut"]
    job = Job(ranks, run, results, tmp_path / "log", own_processes=to == "launcher")
    job.after_round(3)
    os.kill(job.process.pid if to == "launcher" else job.rank(to)["pid"], signal.Signals[name])
    assert job.end() == status, job.said()
    said = job.said()
    assert "stopped after round" in said and "the same command continues" in said and "Traceback" not in said
    assert to == "launcher" or f"rank {to}: {name} while " in said
    done = checkpoint.list_rounds(results)[-1]
    with reader.open_results(results) as file:
        assert file["rounds/round"][:].tolist() == list(range(1, done + 1)) and not reader.is_finished(file)
    assert not progress.path_for(results).exists()
    for folder in ("cut", "whole"):
        assert main([*overrides, f"rounds={done + 2}", f"output={tmp_path}/{folder}"]) == 0
    assert reader.digests(results) == reader.digests(tmp_path / "whole/fedavg_seed1.h5")


SLOW_CLIENT = """
import time
from genfl_mpi.federation.policies.selection import random
def slow(state):
    return random(state)
from genfl_mpi.federation import worker
train = worker.train
def wait(*arguments):
    report = train(*arguments)
    time.sleep(3600)
    return report
worker.train = wait
"""


def test_a_second_signal_ends_at_once(tmp_path):
    """In the middle of a client that takes an hour."""
    (tmp_path / "hours.py").write_text(SLOW_CLIENT)
    job = Job(
        2,
        [*FAST, "selection.policy=hours:slow", "rounds=9", f"output={tmp_path}/cut"],
        tmp_path / "cut/fedavg_seed1.h5",
        tmp_path / "log",
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    )
    until(lambda: (about := job.rank(1)) and about["phase"] == "train" and about["client"] is not None)
    os.kill(job.rank(1)["pid"], signal.SIGTERM)
    until(lambda: "rank 1: SIGTERM while training client" in job.said())
    assert job.process.poll() is None

    def again():
        """What comes within a second is taken for the same signal, passed on by two."""
        with suppress(ProcessLookupError):
            os.kill(job.rank(1)["pid"], signal.SIGTERM)
        return job.process.poll() is not None

    until(again)
    assert job.end() != 0
    assert any("training client" in line for line in progress.describe_ranks(job.results))


LEAVING = """
import os, signal
from genfl_mpi.generation import generator
def draw(self, batch):
    os.kill(os.getpid(), signal.SIGTERM)
    return images(batch)
def images(batch):
    import numpy as np
    return np.zeros((len(batch), 3, 8, 8), np.uint8)
generator.Generator._draw = draw
def equal(state):
    return [1] * 10
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [("", "stopped after round 0 of 2"), ("generate", "interrupted before all images were made")],
)
def test_a_signal_in_generation_keeps_the_images(tmp_path, command, said):
    """A signal between two batches of images drops the round and keeps the finished images in the bank."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    overrides = [
        *FAST,
        "method=genfl",
        "rounds=2",
        "generation.checkpoint=digits",
        "generation.prompts=mnist",
        "generation.batch_size=5",
        "generation.plan=leaving:equal",
        f"generation.bank={tmp_path}/bank",
        f"output={tmp_path}/cut",
    ]
    job = mpirun(
        1,
        "-m",
        "genfl_mpi",
        *filter(None, [command]),
        *overrides,
        PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
    )
    assert job.returncode == 75, job.stderr
    assert "SIGTERM while generating images" in job.stderr and said in job.stdout
    assert len(list((tmp_path / "bank").glob("*.h5"))) == 1
