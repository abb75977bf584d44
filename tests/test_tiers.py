"""Tiers: degenerate cases to the bit, averages by hand, and the same bits on any ranks."""

import os
import signal

import numpy as np
import pytest
import torch
from conftest import Job, mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.config.world import World
from genfl_mpi.edge import cells, channel
from genfl_mpi.federation.worker import Worker
from genfl_mpi.results import reader

CELLS = ["time.driver=tiers", "world={cells: 3}"]
ONE = ["time.driver=tiers", "world={}"]


def weights_after(overrides):
    """Compute a run, and return its weights and records."""
    simulation = Simulation(overrides=overrides)
    records = list(simulation)
    return simulation.weights.clone(), records


def test_clients_belong_to_the_nearest_of_evenly_spread_stations():
    world = World(cells=7)
    stations, places = cells.stations(world), cells.places(world, 500)
    assert (np.linalg.norm(places, axis=1) <= world.channel.radius_m).all()
    cell, distance = cells.nearest(world, 500)
    for client in (0, 123, 499):
        apart = [np.linalg.norm(places[client] - station) for station in stations]
        assert cell[client] == np.argmin(apart) and distance[client] == pytest.approx(min(apart))
    counts = np.bincount(cell, minlength=7)
    assert counts.min() > 500 / 7 / 3 and counts.max() < 2 * 500 / 7
    assert (channel.distances(world, 500, 0) == np.maximum(distance, world.channel.nearest_m)).all()
    alone = World()
    assert (cells.nearest(alone, 500)[0] == 0).all()
    assert cells.nearest(alone, 500)[1] == pytest.approx(np.linalg.norm(places, axis=1))


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_an_average_at_the_cloud_in_every_round_is_fedavg_to_the_bit(model, fast):
    run = [*fast, "rounds=3", f"model.name={model}"]
    flat, records = weights_after(run)
    tiered, again = weights_after([*run, *CELLS])
    assert torch.equal(flat, tiered)
    assert [(one.accuracy, one.loss) for one in records] == [(one.accuracy, one.loss) for one in again]
    for one, other in zip(records, again):
        assert one.columns["update_alignment"] == other.columns["update_alignment"]
        assert len(set(other.clients["cell"])) > 1 and set(one.clients["cell"]) == {-1}


def test_genfl_at_the_cloud_is_eq_1_to_the_bit(tiny):
    run = [*tiny, "kappa.kappa2=0.3"]
    flat, records = weights_after([*run, "world={}"])
    tiered, again = weights_after([*run, *CELLS])
    assert torch.equal(flat, tiered)
    for name in ("kappa2", "images", "augmented_loss", "augmented_cosine"):
        assert [one.columns[name] for one in records] == [one.columns[name] for one in again]


def test_one_cell_is_flat_for_any_number_of_edge_rounds(fast):
    flat, _ = weights_after([*fast, "rounds=4"])
    tiered, records = weights_after([*fast, *ONE, "rounds=4", "time.cloud_every=2"])
    assert torch.equal(flat, tiered)
    assert np.isfinite([one.accuracy for one in records]).tolist() == [False, True, False, True]


def test_one_edge_server_with_a_generator_is_genfl_to_the_bit(tiny):
    run = [*tiny, "kappa.kappa2=0.3"]
    flat, records = weights_after(run)
    for every in (1, 2):
        tiered, again = weights_after([*run, *ONE, f"time.cloud_every={every}", "time.generators=edges"])
        assert torch.equal(flat, tiered)
        for name in ("kappa2", "images", "augmented_loss", "augmented_cosine"):
            assert [one.columns[name] for one in records] == [one.columns[name] for one in again]


def test_two_edge_rounds_by_hand(fast, monkeypatch):
    """Each client moves its cell's model by its number plus one, on every weight."""

    def moved(self, client, own, since, images, labels, rng, round):
        report = train_stages(self, client, own, since, images, labels, rng, round)
        self.model.weights.copy_(self.resident.omega + client.id + 1)
        return report

    train_stages = Worker._train_stages
    monkeypatch.setattr(Worker, "_train_stages", moved)
    run = [*fast, *CELLS, "rounds=2", "time.cloud_every=2"]
    start = Simulation(overrides=run).weights.clone()
    end, records = weights_after(run)
    models, shares = np.zeros(3), np.zeros(3)
    for record in records:
        rho, moves, cell = (record.clients[name] for name in ("rho", "client", "cell"))
        for one in np.unique(cell):
            inside = cell == one
            models[one] += (rho[inside] @ (moves[inside] + 1)) / rho[inside].sum()
            shares[one] += rho[inside].sum()
    assert (shares > 0).sum() > 1
    expected = start.double() + shares @ models / shares.sum()
    assert torch.allclose(end.double(), expected, atol=1e-5)
