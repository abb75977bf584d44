"""SIGKILL to any rank at any moment: the job ends, nothing is lost, and the run goes on to the same bits."""

import os
import random
import signal
from collections import Counter

import pytest
from conftest import FAST, TINY, Job, mpirun, until

from genfl_mpi.cli import main
from genfl_mpi.results import progress, reader

WRITING = ("results", "checkpoint")
OF_ALL = ("start", "train", "wait", "reduce", "broadcast", "evaluate")
# Runs that cover all contents of a checkpoint: images, moments of the server's optimizer, the clients'
# control variates, gaps between checkpoints. With each, the phases of rank 0 in which to kill it.
KINDS = {
    "genfl": ([*TINY, "generation.cap=9"], ("generate", "augment", *WRITING)),
    "fedadam": (
        [*FAST, "algorithm.name=fedadam", "algorithm.server_lr=0.01", "checkpoint.every_rounds=3"],
        WRITING,
    ),
    "scaffold": ([*FAST, "algorithm.name=scaffold", "checkpoint.keep=7"], WRITING),
}


def kill(job, rank, phase, rounds):
    """Kill `rank` with SIGKILL in `phase`, at least `rounds` rounds after the start; return the phase."""

    def ready():
        assert job.process.poll() is None, job.said()
        return (
            job.rank(rank)
            and job.rank(0)
            and (phase == "start" or job.rank(0)["round"] >= job.first + rounds)
        )

    def held():
        """Stop the rank and return its progress if it is in the phase; return None otherwise."""
        assert job.process.poll() is None, job.said()
        about = job.rank(rank)
        if about["phase"] == phase:
            os.kill(about["pid"], signal.SIGSTOP)
            if (now := job.rank(rank))["phase"] == phase:
                return now
            os.kill(about["pid"], signal.SIGCONT)
        return None

    until(ready)
    about = until(held)
    os.kill(about["pid"], signal.SIGKILL)
    assert job.end() != 0
    assert any(
        f"rank {rank} of" in line and progress.PHASES[phase] in line
        for line in progress.describe_ranks(job.results)
    )
    return phase


def killed_and_continued(kind, kills, tmp_path, bank, most, own_processes=True):
    """Kill a run `kills` times, each on 1 to `most` ranks, finish it, and compare with an undisturbed run."""
    draw = random.Random(kind)
    overrides, phases = KINDS[kind]
    overrides = [*overrides, f"generation.bank={bank}"]
    name = f"{'genfl' if kind == 'genfl' else 'fedavg'}_seed1.h5"
    results, hits, done = tmp_path / "cut" / name, [], 0
    # Half of the kills are meant for the writing of files, which takes a small part of the time.
    wanted = [phases[i // 2 % len(phases)] if i % 2 else OF_ALL[i // 2 % len(OF_ALL)] for i in range(kills)]
    for number, phase in enumerate(wanted):
        ranks = draw.randint(1, most)
        rank = 0 if phase in phases else draw.randrange(ranks)
        log = tmp_path / f"{number}.log"
        run = [*overrides, "rounds=5000", f"output={tmp_path}/cut"]
        job = Job(ranks, run, results, log, own_processes)
        job.first = done
        hits.append(kill(job, rank, phase, draw.randint(1, 4)))
        assert not number or "the previous start was interrupted" in job.said() or phase == "start"
        if results.exists():
            with reader.open_results(results) as file:
                rows = file["rounds/round"][:].tolist()
                assert rows == list(range(1, len(rows) + 1)) and len(rows) >= done, "a finished round is lost"
                assert len(file["clients/round"]) >= 3 * len(rows) and file["rounds/accuracy"][:].all()
                done = len(rows)
        print(f"{kind}: kill {number + 1}: rank {rank} of {ranks}, {phase}, {done} rounds finished")
    rounds = f"rounds={done + 2}"
    finished = mpirun(draw.randint(1, most), "-m", "genfl_mpi", *overrides, rounds, f"output={tmp_path}/cut")
    assert finished.returncode == 0, finished.stderr
    assert main([*overrides, rounds, f"output={tmp_path}/whole"]) == 0
    assert reader.digests(results) == reader.digests(tmp_path / "whole" / name)
    assert not progress.path_for(results).exists()
    return hits


@pytest.mark.slow
def test_eight_kills(tmp_path, bank):
    hits = Counter()
    for kind, kills in (("genfl", 4), ("scaffold", 4)):
        (tmp_path / kind).mkdir()
        hits.update(killed_and_continued(kind, kills, tmp_path / kind, bank, 2, own_processes=False))
    print(dict(hits))
    assert hits.total() == 8 and sum(hits[phase] for phase in WRITING) >= 2


@pytest.mark.slow
@pytest.mark.long
def test_two_hundred_kills(tmp_path):
    hits = Counter()
    for kind, kills in (("genfl", 60), ("fedadam", 70), ("scaffold", 70)):
        (tmp_path / kind).mkdir()
        hits.update(killed_and_continued(kind, kills, tmp_path / kind, tmp_path / "bank", 4))
    print(dict(hits))
    assert hits.total() >= 200 and sum(hits[phase] for phase in WRITING) >= hits.total() / 3
    assert all(hits[phase] for phase in (*OF_ALL, *WRITING, "generate", "augment")), "a phase was never hit"
