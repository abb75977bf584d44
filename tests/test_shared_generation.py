"""Several ranks generate a round's images: who makes what, and that no result depends on it."""

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, mpirun, prepare

from genfl_mpi.config.loading import single
from genfl_mpi.federation.shared_generation import IN_BANK, Generators, Report, able_ranks_of
from genfl_mpi.mpi.schedule import Speed, assign
from genfl_mpi.results import reader

CORES = len(os.sched_getaffinity(0))
GENERATOR = """
import os, pathlib
import numpy as np
from mpi4py import MPI

def draw(batch, shape):
    {before}
    pathlib.Path(f"made-by-{{MPI.COMM_WORLD.rank}}").touch()
    rng = [np.random.default_rng(seed) for seed in batch.seed]
    return np.stack([one.integers(0, 256, shape, np.uint8) for one in rng])
"""
ONCE = """
    if MPI.COMM_WORLD.rank == 1 and not os.path.exists("marker"):
        pathlib.Path("marker").touch()
        os.kill(os.getpid(), {signal})
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs GenFL with a generator of its own on some ranks, and returns the job."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GENERATOR.format(before="pass"))

    def start(ranks, output, *more):
        return mpirun(ranks, "-m", "genfl_mpi", *overrides(output), *more)

    return start


def overrides(output):
    settings = ["generation.checkpoint=mine:draw", "generation.batch_size=2", "generation.cap=3", "rounds=3"]
    return [*TINY, *settings, f"output={output}", f"generation.bank={output}/bank"]


def rows(output):
    with reader.open_results(f"{output}/genfl_seed1.h5") as file:
        return reader.read_columns(file, "ranks"), reader.read_columns(file, "rounds")


def in_bank(output):
    return {path.name for path in Path(f"{output}/bank").glob("*.h5")}


def digests(output):
    return reader.digests(f"{output}/genfl_seed1.h5")


@pytest.mark.skipif(CORES < 2, reason="ranks without a core do not generate")
@pytest.mark.parametrize("tiers", [None, pytest.param("cloud", marks=pytest.mark.slow), "edges"])
def test_no_result_depends_on_who_generates(tiers, run, tmp_path):
    cells = ["time.driver=tiers", "world={cells: 3, server: {image_seconds: 1}}", "time.cloud_every=2"]
    settings = [*cells, "rounds=4", f"time.generators={tiers}"] if tiers else []
    assert run(1, "one", *settings).returncode == 0
    (tmp_path / "made-by-0").unlink()
    for ranks, wanted in ((2, "all"), (3, "all"), (2, "server")):
        output = f"{ranks}-{wanted}"
        done = run(ranks, output, f"generation.ranks={wanted}", *settings)
        assert done.returncode == 0, done.stderr
        assert digests(output) == digests("one")
        assert in_bank(output) == in_bank("one"), "every rank makes batches that the run uses"
        made, rounds = rows(output)
        shared = made["generating_seconds"].reshape(-1, ranks).sum(0)
        assert (shared[:2] > 0).all() == (wanted == "all") and not shared[2:].any()
        assert (tmp_path / "made-by-1").exists() == (wanted == "all")
        assert (rounds["images_from_bank"] == 0).all()
        for path in tmp_path.glob("made-by-*"):
            path.unlink()


def test_a_world_needs_the_seconds_of_a_generator_function(run, tmp_path):
    refused = run(1, "one", "world={}")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "set world.server.image_seconds" in refused.stderr and not list((tmp_path / "one").glob("*.h5"))
    assert run(1, "two", "world={server: {image_seconds: 1}}", "rounds=1").returncode == 0


@pytest.mark.skipif(CORES < 2, reason="ranks without a core do not generate")
@pytest.mark.parametrize(
    "sent, status", [(signal.SIGKILL, None), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow)]
)
def test_a_run_that_ends_during_shared_generation_continues_to_the_same_digest(run, tmp_path, sent, status):
    assert run(2, "whole").returncode == 0
    (tmp_path / "mine.py").write_text(GENERATOR.format(before=ONCE.format(signal=int(sent)).strip("\n ")))
    ended = run(2, "cut")
    assert (tmp_path / "marker").exists()
    assert ended.returncode == status if status else ended.returncode != 0
    done = run(2, "cut")
    assert done.returncode == 0, done.stderr
    assert digests("cut")[0] == digests("whole")[0]
    images = [{path.name for path in (tmp_path / name / "bank").glob("*.h5")} for name in ("cut", "whole")]
    assert len(images[0]) == len(images[1]) == 15


@pytest.mark.skipif(CORES < 2, reason="ranks without a core do not generate")
def test_two_jobs_share_a_bank_and_generation(run, tmp_path):
    jobs = []
    for number in (1, 2):
        arguments = [*overrides(f"{tmp_path}/{number}"), f"generation.bank={tmp_path}/bank"]
        started, environment = prepare(2, ["-m", "genfl_mpi", *arguments])
        jobs.append(subprocess.Popen(started, env=environment, stdout=subprocess.DEVNULL))
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    assert digests(f"{tmp_path}/1") == digests(f"{tmp_path}/2")


@pytest.mark.skipif(CORES < 2, reason="ranks without a core do not generate")
def test_an_error_of_one_rank_is_one_line(run, tmp_path):
    wrong = "if MPI.COMM_WORLD.rank == 1: return None"
    (tmp_path / "mine.py").write_text(GENERATOR.format(before=wrong))
    done = run(2, "results")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "must return a NumPy array" in line]
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_rank_that_never_generates_never_imports_diffusers(tiny, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from mpi4py import MPI\n"
        "from genfl_mpi.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "names = MPI.COMM_WORLD.gather('diffusers' in sys.modules)\n"
        "print('imported', names)\n"
    )
    bank = f"generation.bank={tmp_path}/bank"
    done = mpirun(2, script, *tiny, bank, "generation.ranks=server", own_processes=True)
    assert "imported [True, False]" in done.stdout, done.stderr


def generators(able, rates=None, load=None):
    found = Generators(np.array(able), [Speed() for _ in able], Speed())
    for speed, rate in zip(found.speeds, rates or []):
        speed.rate = rate
    found.loading.rate = load and 1 / load
    return found


def divide(found, missing, rounds_left=1):
    counts = np.array([len(missing)])
    division = found.divide(counts, np.zeros(1, int), np.array(missing), rounds_left)
    return division and (division.ranks.tolist(), division.seconds)


def test_divide_gives_faster_ranks_more_batches():
    ranks, seconds = divide(generators([True, True, False], [1.0, 3.0, 9.0]), [True] * 4 + [False])
    assert ranks.count(0) == 1 and ranks.count(1) == 3 and ranks[-1] == IN_BANK
    assert seconds == pytest.approx(1.0)


def test_divide_counts_the_time_to_load_a_generator_once_for_all_rounds():
    found = generators([True, True], [1.0, 1.0], load=20.0)
    found.is_loaded[0] = True
    assert divide(found, [True] * 10) is None
    ranks, seconds = divide(found, [True] * 10, rounds_left=10)
    assert ranks.count(1) == 4 and seconds == pytest.approx(6.0)
    found.is_loaded[1] = True
    assert divide(found, [True] * 10)[0].count(1) == 5


def test_divide_leaves_a_single_batch_to_the_server():
    assert divide(generators([True, True]), [True, False]) is None
    assert divide(generators([True, False]), [True, True]) is None
    assert divide(generators([True, True]), [True, True])[1] == np.inf  # nothing is measured yet


def test_able_ranks_have_cores_of_their_own():
    def able(wanted, ranks=4, per_node=4, cores=4, threads=1):
        settings = ["method=genfl", f"generation.ranks={wanted}", f"generation.threads={threads}"]
        return able_ranks_of(single(None, settings), ranks, per_node, cores).tolist()

    assert able("all") == [True] * 4 and able("server") == [True, False, False, False]
    assert able(2) == [True, True, False, False]
    assert able("all", cores=2) == [True, True, False, False]
    assert able("all", per_node=2, cores=4, threads=4) == [True, False, True, False]
    assert able("all", cores=1, threads=4) == [True, False, False, False]


def test_assign_takes_the_time_at_which_each_rank_begins():
    assert assign(np.ones(3), np.ones(2), np.array([0.0, 2.5])).tolist() == [0, 0, 0]
    assert assign(np.ones(2), np.ones(2), np.array([5.0, 0.0])).tolist() == [1, 1]


def test_a_loaded_generator_is_not_charged_for_loading_again():
    found = generators([True, True], [1.0, 1.0], 100.0)
    found.is_loaded[0] = True
    assert divide(found, [True] * 4) is None, "rank 1 would load for 100 s"
    found.measure(Report(np.array([0, 1]), np.array([0.0, 1.0]), np.array([0.0, 100.0]), False, 0.0))
    ranks, seconds = divide(found, [True] * 4)
    assert sorted(ranks) == [0, 0, 1, 1] and seconds == pytest.approx(2.0)
