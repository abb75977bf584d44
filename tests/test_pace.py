"""Measured speeds steer work ahead in a wait and the schedule of the first round after a restart."""

from pathlib import Path

import numpy as np
import pytest

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.federation import simulation
from genfl_mpi.mpi import collectives
from genfl_mpi.mpi.schedule import Balance, Pace, Speed
from genfl_mpi.results import checkpoint, reader

PICTURES = """
import numpy as np

def pictures(batch, shape):
    return np.stack([np.full(shape, seed % 256, np.uint8) for seed in batch.seed])
"""


@pytest.fixture
def drawn(fast, tmp_path, monkeypatch):
    """A run of four rounds that generates a batch a round, at once, into a bank of its own."""
    (tmp_path / "pictures.py").write_text(PICTURES)
    monkeypatch.syspath_prepend(tmp_path)
    return [
        *fast,
        "method=genfl",
        "rounds=4",
        "generation.checkpoint=pictures:pictures",
        "generation.prompts=mnist",
        "generation.per_round=1",
        "generation.cap=4",
        "generation.batch_size=10",
        f"generation.bank={tmp_path}/bank",
    ]


def made(overrides):
    """The number of batches in the bank."""
    return len(list(Path(overrides[-1].partition("=")[2]).glob("*.h5")))


def test_the_slowest_other_rank_is_predicted():
    pace, costs, ranks = Pace(3), np.array([100.0, 300, 200, 50]), np.array([1, 0, 2, 1])
    assert pace.seconds_of_others(costs, ranks) == 0, "nothing was measured"
    pace.measure(np.array([100, 100]), np.array([1.0, 2.0]), np.array([1, 2]))
    assert pace.seconds_of_others(costs, ranks) == pytest.approx(200 / 50)
    pace.measure(np.array([100, 100]), np.array([1.0, 0.5]), np.array([1, 2]))
    assert pace.seconds_of_others(costs, ranks) == pytest.approx(200 / (0.7 * 50 + 0.3 * 200))
    assert pace.seconds_of_others(costs, np.zeros(4, dtype=int)) == 0, "no other rank trains"
    assert Pace(1).seconds_of_others(costs, np.zeros(4, dtype=int)) == 0


def test_a_batch_that_does_not_fit_is_not_begun(drawn):
    server = Simulation(overrides=drawn).server
    generated = server.images
    generated.speed.rate = 0.5
    assert not generated.make_ahead(server.state, 100.0), "nobody knows how long loading takes"
    generated.loading.rate = 0.1  # both as recalled after a restart
    assert generated.busy_seconds(server.state, np.inf) == pytest.approx(12)
    assert not generated.make_ahead(server.state, 11.9) and made(drawn) == 0
    assert generated.make_ahead(server.state, 12.1) and made(drawn) == 1
    generated.speed.rate = 0.5  # and the generator is loaded
    assert not generated.make_ahead(server.state, 1.9) and made(drawn) == 1
    while generated.make_ahead(server.state, 2.1):
        pass
    assert made(drawn) == 3, "those of all later rounds"


@pytest.mark.parametrize(("seconds", "batches"), [(0.0, [1, 2, 3, 4]), (1e9, [4, 4, 4, 4])])
def test_a_round_makes_ahead_what_fits_into_its_wait(drawn, monkeypatch, seconds, batches):
    """The wait is as long as the prediction says, and the barrier never hurries: no clock decides."""

    def wait_for_all(comm, meanwhile=None, leaving=None):
        while meanwhile and meanwhile():
            pass
        return collectives.Waiting(0.0, 0.0)

    monkeypatch.setattr(collectives, "wait_for_all", wait_for_all)
    monkeypatch.setattr(Pace, "seconds_of_others", lambda *_: seconds)
    assert [made(drawn) for _ in Simulation(overrides=drawn)] == batches


def test_speeds_are_recalled():
    pace, generation, rng = Pace(3), (Speed(), Speed()), np.random.default_rng(0)
    for _ in range(5):
        samples, ranks = rng.integers(10, 500, 8), np.arange(8) % 2  # rank 2 is never measured
        pace.measure(samples, (samples + 40) / np.array([100.0, 200])[ranks], ranks)
    generation[0].measure(1, 4.0)
    again, images = Pace(3), (Speed(), Speed())
    again.restore(pace.state(generation), images)
    assert [speed.rate for speed in again.speeds] == [speed.rate for speed in pace.speeds]
    assert [speed.rate for speed in images] == [0.25, None] and again.overhead == pace.overhead > 0
    assert (again.moments == pace.moments).all()
    fewer = Pace(2)
    fewer.restore(pace.state(generation), images)
    assert fewer.rates() == pytest.approx(pace.rates()[:2].mean()) and fewer.overhead == pace.overhead
    unmeasured = Pace(3)
    unmeasured.restore(Pace(2).state((Speed(), Speed())), images)
    assert unmeasured.rates().tolist() == [1, 1, 1] and images[0].rate is None


def test_balance_gives_all_ranks_the_same_time_although_it_began_without_rates():
    rng, balance, rates = np.random.default_rng(0), Balance(Pace(2)), np.array([100.0, 200])
    under_way, total = [], np.zeros(2)
    for round in range(40):
        units = rng.integers(50, 500, 16 if round == 0 else 2).astype(float)
        ranks = balance.assign(units)
        np.add.at(total, ranks, units / rates[ranks])
        under_way += zip(units, ranks)
        (units, ranks), under_way = map(np.array, zip(*under_way[:2])), under_way[2:]
        balance.measure(units, units / rates[ranks], ranks)
    assert abs(total[0] - total[1]) < 5 < total.sum() / 10  # a client takes up to 5 s
    assert (balance.waiting[0] == np.bincount([rank for _, rank in under_way], minlength=2)).all()


def test_rates_of_generation_are_recalled_per_rank():
    measured = [Speed() for _ in range(4)]
    for speed, batches in zip(measured, (1, 3, 0, 5)):  # rank 2 never generated; the last is loading
        speed.measure(batches, 1.0)
    memory = Pace(1).state(measured)
    for ranks, rates in ((3, [1, 3, None]), (2, [2, 2]), (1, [2])):
        again = [Speed() for _ in range(ranks + 1)]
        Pace(1).restore(memory, again)
        assert [speed.rate for speed in again] == [*rates, 5]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("rates", None),
        ("rates", np.array([1.0, np.nan])),
        ("rates", np.array([1.0, -1])),
        ("rates", np.ones((1, 2))),
        ("rates", np.ones(2, dtype=np.float32)),
        ("rates", np.array(["fast", "slow"])),
        ("overhead", np.array([np.inf])),
        ("overhead", np.zeros(0)),
        ("moments", np.zeros((3, 2))),
        ("generation", np.float64(1)),
    ],
)
def test_malformed_speeds_are_ignored(name, array):
    measured, pace, generation = Pace(2), Pace(2), (Speed(), Speed())
    measured.measure(np.array([50, 50]), np.array([1.0, 0.5]), np.array([0, 1]))
    memory = measured.state(generation) | {name: array}
    pace.restore({name: array for name, array in memory.items() if array is not None}, generation)
    assert pace.rates().tolist() == [1, 1]
    assert not pace.overhead and not pace.moments.any()


def test_a_restart_is_scheduled_by_the_speeds_of_the_start_before(drawn, tmp_path, monkeypatch):
    """Without speeds in the checkpoint, or with malformed ones, none is known. The digest is the same."""
    assert main([*drawn, f"output={tmp_path}/whole", f"generation.bank={tmp_path}/whole/bank"]) == 0
    select, seen = simulation.Server.select, []

    def noted(self, round, message):
        seen.append((round, self.pace.rates()[0], self.images.speed.rate, self.images.loading.rate))
        if round == stop:
            raise RuntimeError("interrupted")
        select(self, round, message)

    monkeypatch.setattr(simulation.Server, "select", noted)
    file, whole = tmp_path / "results/genfl_seed1.h5", reader.digests(tmp_path / "whole/genfl_seed1.h5")
    stop = 2  # the checkpoint is of the round before
    assert main(drawn) == 1
    _, known, _ = seen
    assert known[0] == 1 and known[1] != 1 and None not in known
    with reader.open_results(file) as results:
        run = reader.read_run_id(results)
    stop, (rounds, weights, state) = 1, checkpoint.load(file, run, print)
    without = {name: array for name, array in state.items() if not name.startswith("pace.")}
    malformed, unmeasured = state | {"pace.rates": np.ones((1, 1))}, (1, 1.0, None, None)
    for stored, expected in ((state, known), (without, unmeasured), (malformed, unmeasured), (state, known)):
        checkpoint.save(file, run, rounds, weights, stored)
        seen.clear()
        assert main(drawn) == 1 and seen == [expected]
    stop = None
    assert main(drawn) == 0
    assert reader.digests(file) == whole
