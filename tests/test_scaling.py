"""Predictions of a run's cost, by hand and against the runs' own records; how runs scaled."""

import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import mpirun

from genfl_mpi.analysis import scaling
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.federation.simulation import Simulation, resolve
from genfl_mpi.mpi import collectives
from genfl_mpi.mpi.round_time import Cluster, exchange, loads
from genfl_mpi.preparation import calibration, plan, sweep_plan
from genfl_mpi.preparation.calibration import Costs
from genfl_mpi.preparation.prediction import predict, total_seconds
from genfl_mpi.results import reader

COSTS = Costs(
    rate=100.0,
    overhead=5.0,
    batch=2.0,
    test=1.0,
    rest=0.25,
    first=0.0,
    load=0.0,
    copy_rate=1e9,
    broadcast_bytes=1000,
    reduction_bytes=2000,
    rank_bytes=0,
    server_bytes=0,
    shared_bytes=0,
)


def cluster(ranks, nodes=1, cores=64):
    return Cluster(ranks, nodes, cores, 1, latency=1e-3, bandwidth=1e6, copy_rate=1e9)


def test_exchange_by_hand():
    assert exchange(1000, 2000, cluster(1)) == 0
    # Two nodes: two steps of 1 ms for the broadcast and two for the reduction. Each sends half of its message
    # twice; the reduction also adds half of its message.
    assert exchange(1000, 2000, cluster(2, 2)) == pytest.approx(4e-3 + 1000e-6 + 2000e-6 + 1000e-9)
    assert exchange(1000, 2000, cluster(8)) > exchange(1000, 2000, cluster(4)) > 0
    assert exchange(10**6, 10**6, cluster(8, cores=2)) > 3 * exchange(10**6, 10**6, cluster(8)), (
        "ranks that share cores copy more slowly"
    )


def test_loads_by_hand():
    assert loads(np.array([3.0, 2, 2]), 1.0, 2).tolist() == [5, 3]
    assert loads(np.array([1.0, 1]), 9.0, 3).tolist() == [9, 1, 1]


def resolved(overrides):
    config = resolve(single(None, overrides), collectives.single())
    return config, load_and_divide(config)


def test_a_plan_has_the_clients_of_the_run(fast, tmp_path):
    config, arrays = resolved([*fast, "rounds=4", "training.epochs=3", "evaluation.batch_size=10"])
    one = predict(config, arrays, COSTS, cluster(1))
    sizes = [record.clients["samples"] for record in Simulation(config)]
    assert one["longest rank"] == pytest.approx([(3 * own + 5).sum() / 100 for own in sizes])
    assert one["round"] == pytest.approx(one["longest rank"] + 1.25) and not one["waiting"].any()
    crowded = predict(config, arrays, COSTS, cluster(4, cores=2))
    many = predict(config, arrays, COSTS, cluster(4))
    assert many["longest rank"] == pytest.approx([(3 * own + 5).max() / 100 for own in sizes]), (
        "more ranks than clients"
    )
    assert crowded["longest rank"] == pytest.approx(2 * many["longest rank"]) and many[
        "testing"
    ] == pytest.approx([0.25] * 4)
    assert total_seconds(np.array([9.0, 1, 1, 1]), config.model_copy(update={"rounds": 10})) == 18


@pytest.mark.parametrize(
    ("refinement", "samples"),  # trained in a round, by images; a teacher's forward pass is a third of a step
    [("fine_tune", lambda images: 5 * images), ("distil", lambda images: 4 * min(8, images) + images)],
)
def test_a_plan_counts_what_the_server_does_after_eq_1(tiny, refinement, samples):
    steps = ["augmented.epochs=5", "distillation.batches=4", "distillation.batch_size=8", "cohort=3"]
    images = ["method=genfl", "generation.per_round=1", "generation.cap=10"]
    config, arrays = resolved([*tiny, *steps, *images, f"composition.use=[{refinement}]", "rounds=2"])
    found = predict(config, arrays, COSTS, cluster(1))
    assert found["refining"] == pytest.approx([samples(10 * made) / 100 for made in (1, 2)])
    plain, _ = resolved([*tiny, *steps, *images, "rounds=2"])
    assert not predict(plain, arrays, COSTS, cluster(1))["refining"].any()


def test_a_plan_counts_the_servers_images_until_the_bank_has_them(tiny):
    tiny = [
        *tiny,
        "rounds=4",
        "cohort=2",
        "generation.cap=3",
        "generation.bank=" + tiny[-2].partition("=")[2] + "/own",
    ]
    config, arrays = resolved(tiny)
    alone, three = (predict(config, arrays, COSTS, cluster(ranks)) for ranks in (1, 3))
    learning = np.array([10 + 5, 20 + 5, 30 + 5, 30 + 5]) / 100  # an image a class in the first three rounds
    assert alone["server"] == pytest.approx(np.array([2, 2, 2, 0]) + learning)
    made = np.array([2, 2, 0, 0])  # the third round's while rank 0 waits in the second, when speeds are known
    assert three["server"] == pytest.approx(made + learning)
    slow = predict(config, arrays, replace(COSTS, batch=60.0), cluster(3))
    assert slow["server"] == pytest.approx(np.array([60, 60, 60, 0]) + learning), "none fits into a wait"
    assert main(tiny) == 0
    assert predict(config, arrays, COSTS, cluster(1))["server"] == pytest.approx(learning)


def test_a_plan_shares_generation_over_ranks_with_cores(tiny, tmp_path):
    tiny = [*tiny, "method=aigc", "generation.batch_size=5", f"generation.bank={tmp_path}/own"]
    config, arrays = resolved(tiny)
    costs = replace(COSTS, load=1.0)
    server, shared, one_core = (
        predict(config.model_copy(update={"generation": generation}), arrays, costs, cluster(2, cores=cores))
        for generation, cores in (
            (config.generation.model_copy(update={"ranks": "server"}), 64),
            (config.generation, 64),
            (config.generation, 1),
        )
    )
    learning = np.array([10 + 5, 20 + 5]) / 100
    assert server["server"] == pytest.approx(np.array([1 + 2 * 2, 2 * 2]) + learning)
    assert shared["server"] == pytest.approx(np.array([1 + 2, 2]) + learning)
    assert shared["round"].sum() < server["round"].sum()
    assert one_core["server"] == pytest.approx(2 * (np.array([1 + 2 * 2, 2 * 2]) + learning))


def test_a_bill_divides_runs_over_groups():
    bill = sweep_plan.bill([3600.0, 7200.0, 3600.0], 2, cluster(8, nodes=2, cores=3), 1, 500.0)
    assert (bill.hours, bill.core_hours, bill.kilowatt_hours) == (2.0, 12.0, 2.0)
    assert sweep_plan.duration(90) == "90 s" and sweep_plan.duration(600) == "10 min"
    assert sweep_plan.duration(9000) == "2.5 h"


def test_costs_are_measured_once_for_runs_that_cost_the_same():
    def key(*overrides):
        return sweep_plan.cost_key(single(None, overrides))

    assert key("method=fedavg") == key("method=genfl", "seed=2", "training.lr=0.5", "cohort=3")
    assert key("method=fedavg") != key("method=fedavg", "training.batch_size=3")
    assert key("method=fedavg") != key("method=fedavg", "model.name=lenet5")


def test_plan_predicts_a_whole_sweep(tiny, tmp_path, monkeypatch, capsys):
    measured = []

    def measure_costs(comm, config, cluster):
        measured.append(config.method)
        return resolve(config, comm), COSTS, replace(cluster, threads=1, copy_rate=1e9)

    monkeypatch.setattr(sweep_plan, "measure_costs", measure_costs)
    sweep = [*tiny[1:], "sweep.method=[fedavg,genfl,aigc]", f"generation.bank={tmp_path}/own"]
    assert main(["plan", *sweep, "-n", "8", "--sweep", "--watts", "200"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert measured == ["genfl"]
    assert [line.partition(":")[0] for line in said[:3]] == ["fedavg_seed1", "genfl_seed1", "aigc_seed1"]
    assert said[4].startswith("3 runs on 8 ranks on 1 node, in 2 groups of 4")
    assert said[-1].endswith("kWh at 200 W per node") and said[-2].endswith("core-hours")
    assert main(["plan", *sweep, "-n", "8", "--sweep", "--watts", "0"]) == 2


def test_plan_measures_a_generator_of_few_steps(tiny, capsys):
    assert main(["plan", *tiny, "generation.steps=2", "-n", "2"]) == 0
    assert "batch" in capsys.readouterr().out


def test_plan_from_a_calibration(fast, capsys):
    assert main(["plan", *fast, "model.norm=group", "-n", "4", "--nodes", "2"]) == 0
    warning, said = capsys.readouterr().out.split("\n", 1)
    assert warning == "warning: settings without effect: model.norm (needs a network with BatchNorm)"
    for text in (
        "samples/s in training",
        "4 ranks on 2 nodes",
        "LogGP",
        "MB to every rank",
        "MB results; at most",
        "strong scaling",
        "best on 2 nodes",
        "weak scaling",
    ):
        assert text in " ".join(said.split())  # where lines break depends on what was measured
    assert max(map(len, said.splitlines())) <= 80
    assert main(["plan", *fast, "-n", "2", "--nodes", "4"]) == 2
    assert "--nodes 4: more nodes than ranks (2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "is_measured"),
    [
        ([], True),
        (["clients=19"], False),
        (["algorithm.name=scaffold"], False),
        (["personal.method=fedper"], False),
        (["misbehaving_clients.kind=free_rider", "misbehaving_clients.share=0.1"], False),
    ],
)
def test_plan_compares_clients_trained_together_where_they_can_be(tiny, monkeypatch, settings, is_measured):
    monkeypatch.setattr(calibration, "BATCHED_SECONDS", 0.01)
    config, _ = resolved([*tiny, "method=fedavg", "clients=20", *settings])
    costs = Costs(1e9, *[0.0] * 7, *[0] * 5)
    factor = calibration.batching_factor(config, costs)
    assert factor > 0 if is_measured else np.isnan(factor)
    slow = replace(costs, rate=100.0)  # 20 clients take longer than the measurement may
    assert np.isnan(calibration.batching_factor(config, slow))


@pytest.mark.parametrize("secure", ["true", "false"])
def test_plan_counts_the_masks_of_the_whole_cohort(tiny, monkeypatch, secure):
    counted = []
    monkeypatch.setattr(calibration.masks, "add_masks", lambda units, terms: counted.append(len(terms)))
    config, _ = resolved(
        [*tiny, "method=fedavg", "clients=20", "cohort=12", f"privacy.secure_aggregation={secure}"]
    )
    seconds = calibration._mask_seconds(config, 100)
    assert counted == ([12] if secure == "true" else []) and (min(seconds) > 0) == (secure == "true")


def test_plan_recommends_no_more_ranks_than_there_are_cores(fast, capsys, monkeypatch):
    monkeypatch.setattr(plan, "calibrate", lambda config: replace(COSTS, overhead=500.0))
    sweep = [*fast, "sweep.seed=[1,2,3]", "cohort=6", "clients=6"]
    assert main(["plan", *sweep, "-n", "2", "--cores", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("the first of 3 runs; --sweep predicts all of them")
    assert "best on 1 node: 2 ranks" in said and re.search(r"with more nodes: \d+ ranks on \d+ nodes", said)
    efficiencies = [int(line.split()[-1]) for line in said.partition("weak scaling")[2].splitlines()[2:]]
    assert efficiencies[0] == 100 and max(efficiencies) <= 100


def test_scaling_from_files_of_one_and_two_ranks(fast, tmp_path, capsys):
    for ranks in (1, 2):
        assert (
            mpirun(ranks, "-m", "genfl_mpi", *fast, "rounds=3", f"output={tmp_path}/{ranks}").returncode == 0
        )
    files = [tmp_path / f"{ranks}/fedavg_seed1.h5" for ranks in (1, 2)]
    assert main(["scaling", *map(str, files), "-o", f"{tmp_path}/scaling.png"]) == 0
    said = capsys.readouterr().out
    assert "6 clients, cohort 3" in said and "efficiency" in said and (tmp_path / "scaling.png").exists()
    one, two = (scaling.read(file, 1e9) for file in files)
    assert (one.cluster.ranks, two.cluster.ranks) == (1, 2)
    assert sum(two.parts.values()) == pytest.approx(100) and one.parts["wait"] < 5
    with reader.open_results(files[0]) as file:
        ranks, clients = reader.read_columns(file, "ranks"), reader.read_columns(file, "clients")
        wait = reader.read_columns(file, "rounds")["wait_seconds"]
    between = ranks["train_seconds"] - clients["seconds"].reshape(3, -1).sum(1)
    measured = one.seconds.mean() - (between + wait).mean()
    assert scaling.predicted(one, one.cluster) == pytest.approx(measured), "but for waits and between clients"
    assert main(["scaling", str(files[0])]) == 2
    assert "nothing to compare" in capsys.readouterr().err


def test_scaling_with_clients_and_cohort(fast, tmp_path, capsys):
    assert main([*fast, "sweep.clients=[4,6]", "sweep.cohort=[1,3]", "rounds=2"]) == 0
    capsys.readouterr()
    assert main(["scaling", f"{tmp_path}/results", "-o", f"{tmp_path}/scaling.pdf"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:3] for row in rows] == [[clients, cohort, "1"] for clients in "46" for cohort in "13"]
    with reader.open_results(tmp_path / "results/fedavg_seed1_clients4_cohort1.h5") as file:
        assert float(rows[0][4]) == pytest.approx(100 * file["rounds/accuracy"][-1], abs=0.01)
