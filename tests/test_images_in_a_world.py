"""Costs of receiving or making images and of longer local training, in the simulated world and in prices."""

import numpy as np
import pytest
from conftest import TINY, mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis import pricing
from genfl_mpi.cli import main
from genfl_mpi.config.world import World
from genfl_mpi.edge.attendance import AGGREGATED, LATE
from genfl_mpi.edge.channel import DOWN, gains, noise, rate
from genfl_mpi.edge.placements import Holdings
from genfl_mpi.edge.rounds import Work
from genfl_mpi.results import reader


def priced(path):
    """(what was read, what it took in its own world, or the default one)."""
    found = pricing.read(path)
    [one] = pricing.in_worlds([found], pricing.worlds_for([found], []))
    return found, one.bill


def test_the_epochs_that_matched_adds_are_priced(fast, tmp_path):
    matched = [*fast, "method=matched", "rounds=2", "generation.cap=8", "generation.per_round=4"]
    assert main(matched) == 0 and main([*fast, "rounds=2"]) == 0
    (found, long), (_, short) = (
        priced(tmp_path / f"results/{method}_seed1.h5") for method in ("matched", "fedavg")
    )
    with reader.open_results(tmp_path / "results/matched_seed1.h5") as file:
        epochs = file["clients/epochs"][:].reshape(2, -1)
    assert (epochs > 1).all() and np.array_equal(found.trace.epochs, epochs)
    for round in range(2):
        each = epochs[round] * short.prices[round].client_joules["compute"]
        assert long.prices[round].client_joules["compute"] == pytest.approx(each, rel=1e-12)
    assert np.array_equal(
        pricing.read(tmp_path / "results/matched_seed1.h5", ["training.epochs=3"]).trace.epochs, epochs + 2
    )


def test_a_world_that_acts_counts_them(fast, tmp_path):
    matched = [
        *fast,
        "method=matched",
        "rounds=3",
        "generation.cap=30",
        "world={enforced: true, channel: {allocation: equal}}",
    ]
    assert main(matched) == 0
    _, free = priced(tmp_path / "results/matched_seed1.h5")
    limit = np.median([sum(price.client_seconds.values()) for price in free.prices])
    matched += [f"world.deadline_s={limit}", f"output={tmp_path}/late"]
    assert main(matched) == 0
    found, bill = priced(tmp_path / "late/matched_seed1.h5")
    made = Simulation(overrides=matched)
    assert len(list(made)) == 3 and bill.client_joules == pytest.approx(made.server.world.spent, rel=1e-12)
    assert {status for round in found.status for status in round.tolist()} == {b"aggregated", b"late"}


# Clients that differ by their devices alone; images take them about as long as training.
CELL = "channel: {radius_m: 50, allocation: equal, fading: none, shadowing_db: 0}"
WORLDS = {
    "sent": f"{CELL}, images: {{bits_per_pixel: 4800, delivery: unicast}}",
    "filled": f"{CELL}, images: {{installed: true}}, hardware: {{accelerator_tflops: 0.5}}",
}
METHODS = pytest.mark.parametrize("method", WORLDS)


def world(method, more=""):
    return f"world={{{WORLDS[method]}{more}}}"


@pytest.fixture
def quick(tmp_path, bank):
    return [
        *TINY,
        "data.name=synthetic",
        "data.size=8",
        "data.samples=400",
        "rounds=4",
        "cohort=4",
        "generation.cap=5",
        f"output={tmp_path}/results",
        f"generation.bank={bank}",
    ]


@pytest.fixture
def late(quick):
    """Return a function from a method to the overrides of a run with late clients.

    The deadline is the median of the clients' times in the first round.
    """

    def of(method):
        around = Simulation(overrides=[*quick, f"method={method}", world(method)]).server.world
        images = {"pool": 10, "new": 10} if method == "sent" else {}
        limit = float(np.median(around.forecast(0, **images).seconds))
        return [*quick, f"method={method}", world(method, f", enforced: true, deadline_s: {limit}")]

    return of


@METHODS
def test_an_endless_deadline_is_no_world(method, quick):
    runs = [
        Simulation(overrides=[*quick, f"method={method}", *more])
        for more in ([], [world(method, ", enforced: true, deadline_s: 1.0e+9")])
    ]
    assert all(len(list(one)) == 4 for one in runs) and np.array_equal(*(one.weights for one in runs))


@METHODS
def test_its_price_is_what_it_took(method, late, tmp_path):
    run = late(method)
    assert main(run) == 0
    found, bill = priced(tmp_path / f"results/{method}_seed1.h5")  # which compares who was heard
    assert {AGGREGATED, LATE} == {status for round in found.status for status in round.tolist()}
    made = Simulation(overrides=run)
    assert len(list(made)) == 4 and bill.client_joules == pytest.approx(made.server.world.spent, rel=1e-12)
    phase = {"sent": "receive", "filled": "make"}[method]
    assert sum(price.client_joules[phase].sum() for price in bill.prices) > 0
    least = [method == "sent" or price.client_seconds[phase].min() == 0 for price in bill.prices[1:]]
    assert any(least), "no client generates its images twice"


@pytest.mark.parametrize("method", ["sent"])  # filled, and paid for: test_repair.py
def test_any_number_of_ranks_and_a_continued_run(method, late, tmp_path):
    run = [*late(method), "selection.policy=battery"]
    assert main([*run, "rounds=2"]) == 0 and main(run) == 0
    done = mpirun(2, "-m", "genfl_mpi", *run, f"output={tmp_path}/two")
    assert done.returncode == 0, done.stderr
    assert reader.digests(tmp_path / f"results/{method}_seed1.h5") == reader.digests(
        tmp_path / f"two/{method}_seed1.h5"
    )


@METHODS
def test_what_clients_hold_and_spent_comes_back(method, quick, tmp_path):
    """Of a run in a world that does not act, too."""
    run = [*quick, f"method={method}", world(method)]
    whole = Simulation(overrides=[*run, "rounds=3"])
    list(whole)
    assert main([*run, "rounds=3"]) == 0
    again = Simulation(overrides=run)
    with reader.open_results(tmp_path / f"results/{method}_seed1.h5") as file:
        again.restore(3, file["weights"][:], {}, reader.read_tables_until(file, 3))
    ours, theirs = again.server.world, whole.server.world
    assert ours.spent.any() and np.array_equal(ours.spent, theirs.spent)
    assert ours.holdings.images.any() and np.array_equal(ours.holdings.images, theirs.holdings.images)


def test_a_forecast_counts_what_a_client_lacks(quick):
    """A client that makes images also fetches the generator, once."""
    bare = f"{CELL}, hardware: {{accelerator_tflops: 0.5, receive_watts: 3}}"
    made, plain = (
        Simulation(overrides=[*quick, f"method={method}", "rounds=1", f"world={{{bare}}}"])
        for method in ("filled", "fedavg")
    )
    around, other = made.server.world, plain.server.world
    wanted, down = around.wanted, gains(around.world, 6, 0, DOWN)
    fetching = 8 * around.trace.generator_bytes / rate(20e6 / 4, 20.0 / 4, down, noise(around.world.channel))
    seconds = wanted * around.trace.image_flops / 0.5e12
    longer = (around.samples + wanted) / around.samples  # its training
    compute = around.trace.sample_flops * around.samples / 8 / around.devices.frequency
    before, without = around.forecast(0), other.forecast(0)
    assert (wanted > 0).all()
    assert before.seconds == pytest.approx(without.seconds + fetching + seconds + (longer - 1) * compute)
    cycles = around.trace.sample_flops * around.samples / 8
    training = 1e-28 * cycles * around.devices.frequency**2
    assert before.joules == pytest.approx(
        without.joules + 3 * fetching + 5 * seconds + (longer - 1) * training
    )
    [record] = made
    cohort = record.clients["client"]
    after = around.forecast(0)
    assert after.seconds[cohort] == pytest.approx((without.seconds + (longer - 1) * compute)[cohort])
    others = np.setdiff1d(np.arange(6), cohort)
    assert np.array_equal(after.seconds[others], before.seconds[others])


def test_who_is_stopped_keeps_the_images_that_are_whole():
    holdings, clients = Holdings(4, World()), np.array([0, 2, 3])
    work = Work(made_images=np.array([10, 10, 0]), fetches=np.array([True, True, False]))
    holdings.add(clients, work, {"receive": np.array([1.0, 0.5, 1.0]), "make": np.array([0.39, 0.0, 1.0])})
    assert holdings.images.tolist() == [3, 0, 0, 0] and holdings.generator.tolist() == [
        True,
        False,
        False,
        False,
    ]
    holdings.add(
        clients,
        Work(received_images=np.array([7, 10, 4])),
        {"receive": np.array([1.0, 0.99, 1.0]), "make": np.ones(3)},
    )
    assert holdings.images.tolist() == [10, 0, 9, 4]
