"""Tiers: degenerate cases to the bit, averages by hand, and the same bits on any ranks."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Job, interrupt, mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis import pricing
from genfl_mpi.cli import main
from genfl_mpi.config.world import World
from genfl_mpi.edge import cells, channel
from genfl_mpi.edge.hardware import draw_hardware
from genfl_mpi.edge.placements import draw_cohorts, price_run
from genfl_mpi.edge.rounds import Work, draw_cohort, price_round
from genfl_mpi.edge.trace import Tiers, Trace
from genfl_mpi.federation import tiers
from genfl_mpi.federation.messages import MODEL
from genfl_mpi.federation.parts import Messages
from genfl_mpi.federation.worker import Worker
from genfl_mpi.learning.device_sum import DeviceSum
from genfl_mpi.learning.weights import ExactSum
from genfl_mpi.preparation.preview import planned_batches
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

CELLS = ["time.driver=tiers", "world={cells: 3, server: {image_seconds: 0.1}, edge: {image_seconds: 0.2}}"]
ONE = ["time.driver=tiers", "world={server: {image_seconds: 0.1}}"]


GENFL = [
    "method=genfl",
    "generation.checkpoint=genfl_mpi.generation.noise:noise",
    "generation.prompts=mnist",
    "generation.per_round=1",
    "generation.cap=3",
    "kappa.kappa2=0.3",
]


@pytest.fixture
def genfl(fast, tmp_path):
    return [*fast, *GENFL, f"generation.bank={tmp_path}/bank"]


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cell_has_its_parts_of_the_models_and_sums_of_all(device):
    sums = {
        "cpu": ExactSum(np.zeros(6, dtype=np.int64)),
        "cuda": DeviceSum(torch.zeros(6, dtype=torch.int64)),
    }
    models = torch.arange(6.0).view(3, 2)
    resident = SimpleNamespace(arrays={tiers.MODELS: models}, sums={MODEL: sums[device]})
    [_, one, _] = (tiers._of_cell(Messages(None, None, resident), cell).resident for cell in range(3))
    one.sums[MODEL].add(0.5, torch.tensor([1.0, 4.0]))
    models += 1
    assert one.omega.tolist() == [3, 4]
    assert (np.asarray(sums[device].units) / 2**40).tolist() == [0, 0, 0.5, 2, 0, 0]


@pytest.mark.parametrize("model", ["cnn", "resnet8"])
def test_an_average_at_the_cloud_in_every_round_is_fedavg_to_the_bit(model, fast):
    run = [*fast, "rounds=3", f"model.name={model}"]
    flat, records = weights_after(run)
    tiered, again = weights_after([*run, *CELLS])
    assert torch.equal(flat, tiered)
    assert [(one.accuracy, one.loss) for one in records] == [(one.accuracy, one.loss) for one in again]
    for one, other in zip(records, again):
        assert one.columns["update_alignment"] == other.columns["update_alignment"]
        assert len(set(other.clients["cell"])) > 1 and set(one.clients["cell"]) == {-1}


def test_genfl_at_the_cloud_is_eq_1_to_the_bit(genfl):
    flat, records = weights_after([*genfl, "rounds=2"])
    tiered, again = weights_after([*genfl, *CELLS, "rounds=2"])
    assert torch.equal(flat, tiered)
    for name in ("kappa2", "images", "augmented_loss", "augmented_cosine"):
        assert [one.columns[name] for one in records] == [one.columns[name] for one in again]


def test_one_cell_is_flat_for_any_number_of_edge_rounds(fast):
    flat, _ = weights_after([*fast, "rounds=4"])
    tiered, records = weights_after([*fast, *ONE, "rounds=4", "time.cloud_every=2"])
    assert torch.equal(flat, tiered)
    assert np.isfinite([one.accuracy for one in records]).tolist() == [False, True, False, True]


def test_one_edge_server_with_a_generator_is_genfl_to_the_bit(genfl):
    run = [*genfl, "rounds=2"]
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


def test_the_cloud_trains_on_images_for_its_averages_alone(genfl):
    _, records = weights_after([*genfl, *CELLS, "rounds=4", "time.cloud_every=2"])
    assert [one.columns["kappa2"] for one in records] == [0, 0.3, 0, 0.3]
    assert [one.columns["images"] for one in records] == [0, 10, 10, 20]


def test_edge_servers_make_images_of_the_labels_of_their_cells(genfl):
    run = [
        *genfl,
        *CELLS,
        "rounds=2",
        "time.generators=edges",
        "partition.alpha=0.1",
        "generation.plan=equal",
    ]
    simulation = Simulation(overrides=run)
    labels, of_client = simulation.data["shared_labels"], simulation.server.images.cell_of
    seeds, known = [], len(np.unique(of_client))
    for record in simulation:
        assert len(record.made_in) == len(record.generated) == known > 1
        for cell, (_, batch, _, _) in zip(record.made_in, record.generated):
            held = np.flatnonzero(labels[of_client == cell].sum(0))
            assert sorted(batch.label) == held.tolist()
            seeds += batch.seed
        assert record.columns["images"] == len(seeds) and record.columns["kappa2"] == pytest.approx(0.3)
    assert len(set(seeds)) == len(seeds)
    assert len({len(one) for one in map(np.flatnonzero, labels)}) > 1  # cells differ


@pytest.mark.parametrize("generators", ["cloud", "edges"])
def test_all_images_are_known_before_the_run(generators, genfl):
    run = [*genfl, *CELLS, "rounds=4", "time.cloud_every=2", f"time.generators={generators}"]
    simulation = Simulation(overrides=run)
    planned = list(planned_batches(simulation.config))
    assert [[batch for _, batch, *_ in record.generated] for record in simulation] == planned
    rounds = {"cloud": [False, True, False, True], "edges": [True, True, True, False]}  # of cap=3
    assert [bool(batches) for batches in planned] == rounds[generators]


@pytest.mark.parametrize("generators", [pytest.param("cloud", marks=pytest.mark.slow), "edges"])
def test_the_result_does_not_depend_on_ranks_or_kills(generators, genfl, tmp_path):
    run = [*genfl, *CELLS, "rounds=9", "time.cloud_every=3", f"time.generators={generators}"]
    assert main([*run, f"output={tmp_path}/1"]) == 0
    for ranks in (2, 3):
        done = mpirun(ranks, "-m", "genfl_mpi", *run, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
    results = tmp_path / "killed/genfl_seed1.h5"
    killed = [*run, f"output={tmp_path}/killed"]
    job = Job(2, killed, results, tmp_path / "log")
    job.after_round(2)
    os.kill(job.rank(1)["pid"], signal.SIGKILL)
    assert job.process.wait() != 0
    assert main(killed) == 0
    digests = [reader.digests(tmp_path / name / "genfl_seed1.h5") for name in ("1", "2", "3", "killed")]
    assert digests[0][2] and all(one == digests[0] for one in digests)


def test_a_run_continues_in_the_middle_of_a_period(genfl, tmp_path, monkeypatch):
    run = [*genfl, *CELLS, "rounds=4", "time.cloud_every=4", "time.generators=edges"]
    assert main([*run, f"output={tmp_path}/whole"]) == 0
    parts = [*run, f"output={tmp_path}/parts"]
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        assert main(parts) != 0
    assert main(parts) == 0
    whole, parted = (reader.digests(tmp_path / name / "genfl_seed1.h5") for name in ("whole", "parts"))
    assert whole == parted and whole[2]
    with reader.open_results(tmp_path / "parts/genfl_seed1.h5") as file:
        made = reader.read_columns(file, "generated", ["cell"])["cell"]
    assert made.min() == 0 and made.max() == 2


def test_a_fork_keeps_the_cells(fast, tmp_path, capsys):
    run = [*fast, *CELLS, "rounds=2", "time.cloud_every=2", "checkpoint.keep=1"]
    assert main(run) == 0
    fork = ["fork", str(tmp_path / "results/fedavg_seed1.h5"), "--at", "1", f"output={tmp_path}/fork"]
    assert main([*fork, "world.cells=2"]) == 2
    assert "world.cells cannot change in a fork: it is 3" in capsys.readouterr().err
    assert main([*fork, "training.lr=0.3"]) == 0


def test_dropped_clients_leave_their_weight_to_the_others(fast, monkeypatch):
    train = Worker._train_client

    def broken(self, place, round, clock):
        omega = self.resident.omega
        if self.broadcast.plan["client"][place] == self.broadcast.plan["client"].max():
            self.resident.omega = omega * float("nan")
        train(self, place, round, clock)
        self.resident.omega = omega

    monkeypatch.setattr(Worker, "_train_client", broken)
    run = [*fast, "rounds=2", "faults.nonfinite=drop"]
    flat, _ = weights_after(run)
    tiered, records = weights_after([*run, *CELLS])
    assert torch.equal(flat, tiered)
    assert all(b"not finite" in one.clients["status"].tolist() for one in records)
    parted, _ = weights_after([*run, *CELLS, "time.cloud_every=2"])
    assert parted.isfinite().all() and not torch.equal(flat, parted)


def edge_trace(world, every, **images):
    """Return a trace of two rounds of six clients, their cells, and the first two rounds' prices."""
    none = {"new_images": np.zeros(2), "pool": np.zeros(2)}
    trace = Trace(
        clients=6,
        cohorts=[np.arange(6)] * 2,
        samples=[np.arange(10, 16)] * 2,
        epochs=[1, 1],
        sample_flops=1e6,
        augmented_epochs=2,
        weights_bytes=4e5,
        shape=(1, 8, 8),
        value=np.ones(6),
        image_flops=1e12,
        **none | images.pop("cloud", {}),
        tiers=Tiers(every, **images),
    )
    return trace, cells.nearest(world, 6)[0], price_run(trace, world, draw_cohorts(trace, world))


def flat_price(world, trace, round, inside, **work):
    """Price a round of some clients as the whole cohort of a world's server."""
    cohort = draw_cohort(world, draw_hardware(world, 6), round, np.flatnonzero(inside))
    needed = Work(1e6 * trace.samples[round][inside], trace.weights_bytes, image_flops=1e12, **work)
    return price_round(world, cohort, needed)


def test_edge_rounds_are_priced_as_rounds_of_cells_with_their_part_of_the_band():
    world = World.model_validate({"cells": 2, "edge": {"link_mbps": 100}})
    trace, cell, bill = edge_trace(world, 2)
    edge = {"server": world.edge, "channel": world.channel.model_copy(update={"bandwidth_mhz": 10})}
    local = world.model_copy(update=edge)
    for round in (0, 1):
        parts = [flat_price(local, trace, round, cell == one) for one in (0, 1)]
        seconds, wire = max(one.seconds for one in parts), 0
        if round == 1:  # to the cloud and back
            wire, seconds = 2 * 2 * 4e5, seconds + 2 * 8 * 4e5 / 100e6 + 2 * 3 * 1e5 / 100e12
        assert bill.seconds[round] == pytest.approx(seconds, rel=1e-12)
        assert bill.bytes["wire"][round] == wire
        assert bill.bytes["down"][round] == 2 * 4e5
        joules = sum(sum(one.client_joules.values()).sum() for one in parts)
        assert bill.joules["clients"][round] == pytest.approx(joules)


def test_the_cloud_works_beside_the_edge_rounds_and_edge_servers_at_their_own_prices():
    world = World.model_validate({"cells": 2, "server": {"image_seconds": 4}, "edge": {"image_seconds": 5}})
    plain = edge_trace(world, 2)[2]
    made = {"new_images": np.array([0, 10]), "pool": np.array([0, 10])}
    cloud = edge_trace(world, 2, cloud=made)[2]
    augmenting = 1e6 * 2 * 10 / 100e12
    late = 4 * 10 + augmenting - plain.seconds[0] + (plain.seconds[1] - edge_seconds(world, plain))
    assert cloud.seconds == pytest.approx([plain.seconds[0], late])
    added = cloud.joules["server"] - plain.joules["server"]
    assert added == pytest.approx([0, 400 * (40 + augmenting)])
    edges = edge_trace(world, 2, new_images=np.array([[2, 0], [0, 3]]), pool=np.array([[2, 0], [2, 3]]))[2]
    added = edges.joules["server"] - plain.joules["server"]
    assert added == pytest.approx([100 * 10, 100 * 15], rel=1e-4)
    assert edges.seconds[0] == pytest.approx(10, rel=1e-4)


def edge_seconds(world, plain):
    """Return the seconds of the second round until the edge servers' models arrive."""
    link = 8 * 4e5 / (world.edge.link_mbps * 1e6)
    return plain.seconds[1] - link - 2 * 3 * 1e5 / 100e12


@pytest.mark.parametrize("generators", ["cloud", "edges"])
def test_a_tiered_run_is_priced_in_its_own_world(generators, genfl, tmp_path):
    run = [*genfl, *CELLS, "rounds=2", "time.cloud_every=2", f"time.generators={generators}"]
    assert main(run) == 0
    priced = pricing.read(tmp_path / "results/genfl_seed1.h5", ["generation.checkpoint=digits"])
    [one] = pricing.in_worlds([priced], pricing.worlds_for([priced], []))
    bill = one.bill
    assert f"{bill.bytes['wire'][1] / 1e6:.4g} MB between edge servers and cloud" in "".join(
        pricing.table([one], None)
    )
    assert (bill.bytes["wire"] > 0).tolist() == [False, True]
    images = bill.joules["server"] > 1e3 * 0.1
    assert images.tolist() == [generators == "edges", True]
    with pytest.raises(UserError, match="a world acted on this run"):
        pricing.worlds_for([priced], ["configs/worlds/city.yaml"])


def test_runs_without_tiers_are_not_priced_in_a_world_with_cells(fast, tmp_path):
    (tmp_path / "cells.yaml").write_text("cells: 3")
    with pytest.raises(UserError, match="world cells has cells"):
        pricing.worlds_for([], [str(tmp_path / "cells.yaml")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["time.driver=tiers"], "needs a world with cells"),
        (["world={cells: 3}"], "which only time.driver=tiers uses"),
        ([*CELLS, "rounds=3", "time.cloud_every=2"], "set rounds=4"),
        ([*CELLS, "time.generators=edges"], "needs generated images at the server"),
        ([*CELLS, "selection.policy=poisson"], "needs a selection.policy other than poisson"),
        ([*CELLS, "world.enforced=true"], "needs world.enforced=false"),
        ([*CELLS, "world.channel.speed_mps=1"], "lets clients move"),
        ([*CELLS, "rho.policy=similarity"], "averaged at its edge server"),
        ([*CELLS, "algorithm.name=scaffold"], "algorithm.name=scaffold decides"),
        ([*CELLS, "privacy.secure_aggregation=true"], "needs no privacy"),
    ],
)
def test_what_tiers_cannot_do_is_refused_in_one_line(settings, message, fast, capsys):
    assert main([*fast, *settings]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
