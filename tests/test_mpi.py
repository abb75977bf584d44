"""Scheduling and messages; on several ranks: node-shared memory, failing together."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import mpirun
from mpi4py import MPI

from genfl_mpi.config.sections.samples import Partition
from genfl_mpi.data.partition import partition
from genfl_mpi.federation.algorithms.interface import Array
from genfl_mpi.federation.messages import Broadcast, Reduction
from genfl_mpi.mpi import collectives
from genfl_mpi.mpi.groups import Turns
from genfl_mpi.mpi.schedule import Pace, Speed, assign
from genfl_mpi.results import reader


def test_longest_first_balances():
    costs = np.array([7.0, 5, 4, 4, 3, 3, 2])
    ranks = assign(costs, np.ones(2), busy=0)
    assert np.bincount(ranks, weights=costs).tolist() == [14, 14]


def test_rank_0_gets_fewer_clients_while_it_works_as_the_server():
    costs = np.full(5, 1.0)
    assert (assign(costs, np.ones(3), busy=10) != 0).all()
    assert np.bincount(assign(costs, np.ones(3), busy=1), minlength=3).tolist() == [1, 2, 2]
    assert (assign(costs, np.ones(1), busy=np.inf) == 0).all()
    assert (assign(costs, np.ones(2), busy=np.inf) == 1).all()


def test_a_faster_rank_gets_more_clients():
    assert np.bincount(assign(np.ones(30), np.array([1.0, 2.0]), busy=0)).tolist() == [10, 20]


def test_speed_is_unknown_until_measured():
    speed = Speed()
    assert speed.seconds(10) == np.inf and speed.seconds(0) == 0
    speed.measure(100, 2.0)
    assert speed.seconds(10) == pytest.approx(0.2)


def test_a_rank_without_measurement_gets_the_mean_rate():
    pace = Pace(3)
    assert pace.rates().tolist() == [1, 1, 1]
    pace.measure(np.array([50, 50]), np.array([1.0, 0.5]), np.array([0, 2]))
    assert pace.rates().tolist() == [50, 75, 100]


def test_the_fixed_overhead_of_a_client_is_estimated():
    """Ranks differ in speed; a client costs as much as 40 samples beyond its own."""
    rng, pace, rates = np.random.default_rng(0), Pace(3), np.array([100.0, 200, 50])
    for _ in range(30):
        samples, ranks = rng.integers(10, 500, 12), np.arange(12) % 3
        pace.measure(samples, (samples + 40) / rates[ranks], ranks)
    assert pace.overhead == pytest.approx(40, rel=0.05)
    assert pace.rates() == pytest.approx(rates, rel=0.05)
    same = Pace(1)
    same.measure(np.full(4, 50), np.full(4, 0.1), np.zeros(4, dtype=int))
    assert same.overhead == 0, "clients of equal size carry no information about the overhead"


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_longest_rank_is_near_the_mean(ranks, seed):
    """Dirichlet(0.1), five clients per rank, ranks of different speed, overhead, noise, and a busy server."""
    rng, pace = np.random.default_rng(seed), Pace(ranks)
    pointers, _ = partition(np.arange(50_000) % 10, 400, 10, Partition(alpha=0.1, min_samples=1), seed)
    sizes, rates, busy = np.diff(pointers), 1000 * rng.uniform(0.7, 1.3, ranks), 0.2
    ratios = []
    for _ in range(60):
        units = sizes[rng.choice(400, 5 * ranks, replace=False)]
        own = assign(units + pace.overhead, pace.rates(), busy)
        seconds = (units + 30) / rates[own] * rng.normal(1, 0.02, len(units))
        pace.measure(units, seconds, own)
        load = np.bincount(own, weights=seconds, minlength=ranks)
        load[0] += busy
        ratios.append(load.max() / max(1.1 * load.mean(), seconds.max(), busy))
    assert np.median(ratios[5:]) <= 1


def test_messages_are_views_of_one_buffer_and_do_not_grow_with_clients():
    control = {"control": Array((10, 3), "broadcast")}
    down, up = Broadcast(1001, 5, control), Reduction(1001, 5, 3, {"change": Array((4, 2), "sum")})
    down.weights[:] = 1
    down.plan["rho"], down.arrays["control"][:] = 0.5, 2
    assert (
        down.weights.base is not None
        and (down.weights == 1).all()
        and down.arrays["control"].shape == (10, 3)
    )
    assert down.buffer.nbytes < 4 * 1031 + 5 * 24 + 64
    up.clients[4, 2], up.sums["change"][3, 1] = 1.5, 7
    other = Reduction(1001, 5, 3, {"change": Array((4, 2), "sum")})
    other.clients[1, 1], other.sums["model"][1000] = -2.5, 9
    up.buffer += other.buffer  # as the reduction does
    assert up.clients[4, 2] == 1.5 and up.clients[1, 1] == -2.5
    assert (
        up.sums["change"].ravel().tolist() == [0] * 7 + [7]
        and up.sums["model"].sum() == 9
        and up.units.sum() == 16
    )


def test_a_node_holds_the_data_once(tmp_path):
    script = tmp_path / "shared.py"
    script.write_text("""
import numpy as np
from genfl_mpi.util.errors import UserError
from genfl_mpi.mpi import collectives
comm = collectives.world()
calls = []
def make():
    calls.append(1)
    return {"a": np.arange(1000), "b": np.ones((3, 5), np.uint8)}
data, window = collectives.node_shared(comm, make)
assert (data["a"] == np.arange(1000)).all() and data["b"].shape == (3, 5) and data["b"].sum() == 15
made = comm.allreduce(len(calls))
assert made == 1, made
def missing():
    if comm.rank == 1:
        raise UserError("no")
try:
    collectives.call_on_all(comm, missing)
except UserError as error:
    print(f"rank {comm.rank} {error};")
""")
    done = mpirun(3, script)
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} no;" in done.stdout for rank in range(3))


def test_node_shared_refuses_data_larger_than_shared_memory(tmp_path):
    script = tmp_path / "small.py"
    script.write_text("""
import os
import numpy as np
from types import SimpleNamespace
from genfl_mpi.mpi import collectives
from genfl_mpi.util.errors import UserError
os.statvfs = lambda folder: SimpleNamespace(f_bavail=16, f_frsize=4096)
collectives.library = lambda: "MPICH Version: 5.0.2"
try:
    collectives.node_shared(collectives.world(), lambda: {"a": np.zeros(10**5)})
except UserError as error:
    print(error, ";")
collectives.node_shared(collectives.single(), lambda: {"a": np.zeros(10**5)})
collectives.node_shared(collectives.world(), lambda: {"a": np.zeros(100)})
""")
    done = mpirun(2, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("share 1 MB, and /dev/shm has 0 MB free") == 2


def test_a_command_without_an_mpi_library_prints_one_line(tmp_path):
    (tmp_path / "mpi4py.py").write_text("raise RuntimeError('cannot load MPI library\\nlibmpi.so: no file')")
    done = subprocess.run(
        [sys.executable, "-m", "genfl_mpi", "rounds=1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "genfl_mpi: mpi4py cannot load an MPI library (cannot load MPI library): install one with "
        "pip install 'mpich>=4.2.3', or load your site's MPI module"
    ]


def test_stores_into_windows_are_synchronized(monkeypatch):
    """Check the calls that MPI's memory model requires: on x86 the results agree even without them."""
    calls = []

    def noting(base, *names):
        """Return a subclass of `base` that records calls of the methods `names`."""

        def note(name):
            return lambda self, *arguments: calls.append(name) or getattr(base, name)(self, *arguments)

        return type(base.__name__, (base,), {name: note(name) for name in names})

    class Comm(noting(MPI.Intracomm, "Barrier")):
        def Split_type(self, *arguments, **keywords):
            return Comm(super().Split_type(*arguments, **keywords))

    noted = noting(MPI.Win, "Lock_all", "Sync", "Unlock_all", "Lock", "Unlock")
    monkeypatch.setattr(collectives.MPI, "Win", noted)
    comm = Comm(MPI.COMM_SELF)
    shared, window = collectives.node_shared(comm, lambda: {"a": np.arange(3)})
    assert shared["a"].tolist() == [0, 1, 2]
    assert calls == ["Lock_all", "Sync", "Barrier", "Sync", "Unlock_all"]
    window.Free()
    calls.clear()
    turns = Turns(comm, comm, 2)
    assert calls == ["Lock", "Unlock", "Barrier"] and list(turns) == [0, 1]
    turns.close(lambda: 0)


def test_a_user_error_is_printed_once(tmp_path):
    done = mpirun(3, "-m", "genfl_mpi", "method=fedavg", "cohort=99", f"output={tmp_path}/results")
    assert done.returncode == 2
    assert done.stderr.count("cohort (99) is larger than clients (20)") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("leave", ["sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_rank_that_exits_ends_the_job(tiny, tmp_path, leave):
    (tmp_path / "leaving.py").write_text(
        f"import sys\ndef random(state):\n    if state.round == 1:\n        {leave}\n    return [0, 1, 2]\n"
    )
    done = mpirun(
        2,
        "-m",
        "genfl_mpi",
        *tiny,
        "method=fedavg",
        "selection.policy=leaving:random",
        timeout=60,
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode != 0 and "rank 0 on " in done.stderr


def test_help_is_printed_once():
    done = mpirun(3, "-m", "genfl_mpi", "--help", own_processes=True)
    assert done.returncode == 0 and done.stdout.count("usage:") == 1
    done = mpirun(3, "-m", "genfl_mpi", "--no-such-option", own_processes=True)
    assert done.returncode == 2 and done.stderr.count("usage:") == 1


def test_a_failing_client_ends_all_ranks_and_leaves_the_finished_rounds(tiny, tmp_path):
    script = tmp_path / "failing_run.py"
    script.write_text("""
import sys, time
from genfl_mpi.cli import main
from genfl_mpi.federation import simulation, worker
train = worker.train
def poisoned(model, *rest):
    report = train(model, *rest)
    if poisoned.simulation.round == 1:
        print(f"poisoned at {time.time()};", flush=True)
        model.weights[7] = float("nan")
    return report
init = simulation.Simulation.__init__
def remember(self, *args, **kwargs):
    init(self, *args, **kwargs)
    poisoned.simulation = self
simulation.Simulation.__init__ = remember
worker.train = poisoned
sys.exit(main(sys.argv[1:]))
""")
    done = mpirun(3, script, *tiny, "method=fedavg", "rounds=500", timeout=120)
    assert done.returncode != 0
    assert time.time() - float(re.search(r"poisoned at ([\d.]+);", done.stdout)[1]) < 10, (
        "all ranks should end together"
    )
    assert re.search(
        r"rank \d on \S+, round 2, client \d+: FloatingPointError: .* not finite", done.stderr
    ), done.stderr
    with reader.open_results(tmp_path / "results/fedavg_seed1.h5") as file:
        assert file["rounds/round"][:].tolist() == [1]
