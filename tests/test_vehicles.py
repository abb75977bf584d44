"""Vehicles on a road: how long they stay, who takes part, and the division of bandwidth and power."""

import numpy as np
import pytest

from genfl_mpi import Simulation
from genfl_mpi.config import loading
from genfl_mpi.config.world import World
from genfl_mpi.edge import channel, road, vehicle_allocation
from genfl_mpi.edge.vehicle_allocation import Server, Vehicles, images_in_shadow
from genfl_mpi.federation.policies.kappa import KAPPA
from genfl_mpi.federation.policies.selection import SELECTION
from genfl_mpi.util.errors import UserError

HIGHWAY = "world=configs/worlds/highway.yaml"
BAND = 20e6


def world(**settings):
    return World.model_validate({"road": {"coverage_m": 500}, "channel": {"round_seconds": 10}, **settings})


def vehicles(count=6, seed=1, joules=1.0, sojourn=np.inf):
    rng = np.random.default_rng(seed)
    distance = rng.uniform(30, 250, count)
    gain = 10 ** (-(128.1 + 37.6 * np.log10(distance / 1000)) / 10) / channel.noise(world().channel)
    return Vehicles(
        4e6,
        rng.uniform(0.1, 0.6, count),
        gain,
        np.full(count, 0.2),
        np.full(count, joules),
        sojourn + 0 * gain,
    )


def test_vehicles_drive_through_their_cells():
    one = world()
    speeds, first, later = road.speeds(one, 50), *(road.places(one, 50, round) for round in (0, 1))
    assert ((speeds >= 15) & (speeds <= 35)).all() and ((first >= 0) & (first < 500)).all()
    assert later == pytest.approx((first + 10 * speeds) % 500)
    assert road.sojourn(one, 50, 0) == pytest.approx((500 - first) / speeds)
    assert road.distances(one, 50, 0) == pytest.approx(np.maximum(np.hypot(first - 250, 20), 10))
    assert channel.distances(one, 50, 1) == pytest.approx(road.distances(one, 50, 1))


def test_an_unlimited_coverage_is_the_world_without_a_road(fast):
    plain, unlimited = (
        list(Simulation(overrides=[*fast, "rounds=2", "world={}", "world.enforced=true", *more]))
        for more in ([], ["world.road.speed_mps=[1,2]"])
    )
    assert [one.accuracy for one in plain] == [one.accuracy for one in unlimited]
    assert np.isinf(road.sojourn(World(), 3, 0)).all()


def test_only_who_finishes_before_leaving_takes_part(fast):
    """A model that takes about as long to train as vehicles stay in a cell of 20 m."""
    run = [*fast, "rounds=4", HIGHWAY, "world.enforced=true", "world.road.coverage_m=20"]
    run += ["world.hardware.flops_per_cycle=0.02", "world.channel.allocation=equal"]
    records = list(Simulation(overrides=run))
    status = np.concatenate([record.clients["status"] for record in records])
    assert {b"aggregated", b"late"} == set(status.tolist())
    chosen = list(Simulation(overrides=[*run, "selection.policy=sojourn"]))
    late = [sum((one.clients["status"] == b"late").sum() for one in group) for group in (records, chosen)]
    assert late[1] < late[0]


def test_the_selection_prefers_who_stays_and_the_labels_of_all():
    from dataclasses import replace

    from genfl_mpi.edge.forecast import Forecast
    from genfl_mpi.federation.policies import ServerState

    config = loading.single({"clients": 5, "cohort": 2, "world": {}})
    labels = np.array([[4, 0], [4, 0], [0, 4], [0, 4], [2, 2]], np.int32)
    ones = np.ones(5)
    forecast = Forecast(ones, ones, ones, ones, sojourn=np.array([2.0, 0.5, 2.0, 0.9, 0.1]))
    state = ServerState(0, config, np.full(5, 4), labels, np.zeros(2), forecast=forecast)
    assert sorted(SELECTION["sojourn"](state)) == [0, 2]
    alone = replace(forecast, sojourn=np.array([2.0, 0.5, 0.2, 0.9, 0.1]))
    assert SELECTION["sojourn"](replace(state, forecast=alone)).tolist() == [0, 3]
    assert KAPPA["emd"](replace(state, cohort=np.array([0, 4]))) == pytest.approx((1 + 0) / 2 / 2)


@pytest.mark.parametrize("joules", [1.0, 0.02], ids=["power", "energy"])
def test_the_allocation_is_as_good_as_exhaustive_search(joules):
    """Six vehicles, limited by their power or by their energy: never worse than the grid, and close to it."""
    for seed in (1, 2, 3):
        six = vehicles(seed=seed, joules=joules)
        best = vehicle_allocation.allocate(six, BAND)
        grid = vehicle_allocation.search_grid(six, BAND, shares=24, levels=50)
        equal = vehicle_allocation.allocate_equally(six, BAND)
        assert best.seconds <= grid.seconds <= 1.1 * best.seconds
        assert best.seconds < equal.seconds
        assert best.bandwidth.sum() == pytest.approx(BAND) and best.finish == pytest.approx(best.seconds)
        spent = best.watts * (best.finish - six.ready)
        assert (spent <= six.joules * (1 + 1e-9)).all() and (best.watts <= six.watts).all()


def test_the_allocation_lets_all_finish_before_they_leave():
    six = vehicles()
    unlimited = vehicle_allocation.allocate(six, BAND)
    hurried = six._replace(sojourn=np.where(np.arange(6) == 3, 0.97 * unlimited.seconds, 9.0))
    found = vehicle_allocation.allocate(hurried, BAND)
    assert found.seconds > unlimited.seconds and (found.finish <= hurried.sojourn * (1 + 1e-9)).all()
    with pytest.raises(UserError, match="cannot all send before they leave"):
        vehicle_allocation.allocate(six._replace(sojourn=np.full(6, 0.5)), BAND)
    with pytest.raises(UserError, match="energy does not suffice"):
        vehicle_allocation.allocate(six._replace(joules=np.full(6, 1e-9)), BAND)


def test_the_images_fit_in_the_clients_shadow():
    server = Server(image_seconds=0.1, augment_seconds=0.01, pool=20)
    assert images_in_shadow(server, 0.75) == 5 and images_in_shadow(server, 0.1) == 0
