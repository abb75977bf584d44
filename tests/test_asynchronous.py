"""Asynchronous runs: degenerate cases, stale updates by hand, and the same bits on any ranks."""

import os
import signal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import Job, mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis import pricing
from genfl_mpi.cli import main
from genfl_mpi.config.sections.time import Time
from genfl_mpi.federation.asynchronous import _Rank, coefficients, combine
from genfl_mpi.results import reader

FEDBUFF = ["time.driver=fedbuff", "time.concurrency=5", "clients=8", "world={}"]


def weights_after(overrides, **more):
    """Compute a run, and return its weights and records."""
    simulation = Simulation(overrides=overrides, **more)
    records = list(simulation)
    return simulation.weights.clone(), records


def trace_of(records, path, seconds=1.0, server=()):
    """Write a trace in which every round's cohort starts together and takes the same time."""
    rows = [
        f"{client},{(record.round - 1) * seconds},{seconds}"
        for record in records
        for client in record.clients["client"].astype(int)
    ]
    path.write_text("\n".join(["client,start,seconds", *rows, *server]) + "\n")
    return [f"time.trace={path}", "time.driver=fedbuff"]


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_equal_times_and_the_whole_cohort_are_fedavg_to_the_bit(model, fast, tmp_path):
    run = [*fast, "rounds=3", "rho.policy=uniform", f"model.name={model}"]
    synchronous, records = weights_after(run)
    asynchronous, again = weights_after([*run, *trace_of(records, tmp_path / "trace.csv")])
    assert torch.equal(synchronous, asynchronous)
    assert [one.accuracy for one in records] == [one.accuracy for one in again]
    assert [one.columns["virtual_seconds"] for one in again] == [1, 2, 3]


def test_an_augmented_model_in_time_is_eq_1_to_the_bit(tiny, tmp_path):
    run = [*tiny, "rounds=2", "rho.policy=uniform", "kappa.kappa2=0.3"]
    synchronous, records = weights_after(run)
    asynchronous, again = weights_after([*run, *trace_of(records, tmp_path / "trace.csv")])
    assert torch.equal(synchronous, asynchronous) and again[1].columns["images"] == 20
    assert [one.columns["kappa2"] for one in again] == [0.3, 0.3]


def test_a_stale_augmented_model_enters_as_an_update_with_less_weight(tiny, tmp_path):
    """The server needs 1.5 rounds: its model from version 0 enters round 2, stale by one."""
    run = [*tiny, "rounds=2", "rho.policy=uniform", "kappa.kappa2=0.4"]
    _, records = weights_after([*run, "method=fedavg"])
    trace = trace_of(records, tmp_path / "trace.csv", server=["server,0,1.5"])
    stale, again = weights_after([*run, *trace])
    assert [one.columns["kappa2"] for one in again] == pytest.approx([0, 0.4 / 2**0.5])
    assert [one.columns["images"] for one in again] == [0, 10]
    fedavg, _ = weights_after([*run, *trace, "method=fedavg"])
    assert not torch.equal(stale, fedavg)


def test_one_client_at_a_time_by_hand(fast):
    """K = M = 1 with eta = 0.5: half of the way that the client went."""
    one = [*fast, "rounds=1", "cohort=1", "clients=1"]
    trained, _ = weights_after(one)
    start = Simulation(overrides=one).weights.clone()
    half, [record] = weights_after([*one, "time.driver=fedbuff", "time.server_lr=0.5", "world={}"])
    assert torch.allclose(half, (start + trained) / 2, atol=1e-7)
    assert record.clients["rho"].tolist() == [0.5] and record.clients["staleness"].tolist() == [0]
    mixed, _ = weights_after([*one, "time.driver=fedasync", "time.mixing=0.25", "world={}"])
    assert torch.allclose(mixed, 0.75 * start + 0.25 * trained, atol=1e-7)


def test_stale_updates_by_hand():
    """Two updates, from version 3 and, stale by 3, from version 0; two parameters and a statistic."""
    versions = {0: torch.tensor([0.0, 0.0, 1.0]), 3: torch.tensor([1.0, 2.0, 2.0])}
    trained = {3: torch.tensor([2.0, 2.0, 4.0]), 0: torch.tensor([1.0, 1.0, 6.0])}
    begun = np.array([3, 0])

    def combined(time, places):
        c = coefficients(time, 3 - begun[places])
        total = sum(one * trained[int(u)].double() for one, u in zip(c, begun[places]))
        return c, combine(time, total, begun[places], 3, versions, 2).tolist()

    c, model = combined(Time(driver="fedbuff"), [0, 1])
    assert c.tolist() == [0.5, 0.25]
    # 1 + 0.5 * 1 + 0.25 * 1; 2 + 0.25 * 1; 0.25 * 2 + 0.75 * (0.5 * 4 + 0.25 * 6) / 0.75
    assert model == pytest.approx([1.75, 2.25, 4.0])
    c, model = combined(Time(driver="fedasync", mixing=0.5), [1])
    assert c.tolist() == [0.25] and model == pytest.approx([1.0, 1.75, 3.0])


@pytest.mark.parametrize(
    "driver",
    [
        pytest.param(FEDBUFF, id="fedbuff"),
        pytest.param(
            ["time.driver=fedasync", "cohort=1", "time.concurrency=4", "clients=8", "world={}"],
            marks=pytest.mark.slow,
            id="fedasync",
        ),
        pytest.param(
            ["time.driver=semi_synchronous", "time.period_s=0.03", "clients=8", "world={}"],
            marks=pytest.mark.slow,
            id="semi_synchronous",
        ),
    ],
)
def test_the_result_does_not_depend_on_ranks_or_kills(driver, fast, tmp_path):
    run = [*fast, *driver, "rounds=8", "training.epochs=2"]
    for ranks in (1, 2, 4):
        done = mpirun(ranks, "-m", "genfl_mpi", *run, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
    results = tmp_path / "killed/fedavg_seed1.h5"
    job = Job(2, [*run, f"output={tmp_path}/killed"], results, tmp_path / "log")
    job.after_round(3)
    os.kill(job.rank(1)["pid"], signal.SIGKILL)
    assert job.process.wait() != 0
    assert main([*run, f"output={tmp_path}/killed"]) == 0
    digests = [reader.digests(tmp_path / name / "fedavg_seed1.h5") for name in ("1", "2", "4", "killed")]
    assert digests[0][2] and all(one == digests[0] for one in digests)
    with reader.open_results(results) as file:
        columns = reader.read_columns(file, "clients", ["staleness"])
        seconds = reader.read_columns(file, "rounds", ["virtual_seconds"])["virtual_seconds"]
    assert columns["staleness"].max() > 0 and (np.diff(seconds) > 0).all()


def test_an_augmented_model_under_way_survives_a_signal_and_more_rounds(fast, tmp_path):
    """Its server is slow, so that every augmented model is stale; images are of the public pool."""
    run = [*fast, *FEDBUFF, "method=pool", "data.public_pool=20", "world.server.tflops=2e-4", "rounds=7"]
    done = mpirun(2, "-m", "genfl_mpi", *run, f"output={tmp_path}/whole")
    assert done.returncode == 0, done.stderr
    results = tmp_path / "parts/pool_seed1.h5"
    parts = [*run, f"output={tmp_path}/parts"]
    assert main([*parts, "rounds=2"]) == 0
    job = Job(2, parts, results, tmp_path / "log")
    job.after_round(3)
    os.kill(job.rank(1)["pid"], signal.SIGTERM)
    assert job.end() in (0, 75)
    assert main(parts) == 0
    assert reader.digests(results) == reader.digests(tmp_path / "whole/pool_seed1.h5")
    with reader.open_results(results) as file:
        kappa2 = reader.read_columns(file, "rounds", ["kappa2"])["kappa2"]
    assert (kappa2 == 0).any() and ((kappa2 > 0) & (kappa2 < 0.2)).any()


@pytest.mark.parametrize(("mean_seconds", "trained"), [(0.0, 2), (1e9, 0)])
def test_a_rank_trains_ahead_only_if_a_message_is_late(fast, mean_seconds, trained):
    simulation = Simulation(overrides=[*fast, *FEDBUFF])
    rank = _Rank(simulation.parts, simulation.events)
    rank.mean_seconds, rank.train_next, answers = mean_seconds, Mock(return_value=True), [False, False, True]
    rank.wait(Mock(Test=lambda: answers.pop(0)))
    assert rank.train_next.call_count == trained


def test_dropped_clients_leave_their_weight_to_the_others(fast, monkeypatch):
    from genfl_mpi.federation.worker import Worker

    train = Worker._train_client

    def broken(self, place, round, clock):
        if self.broadcast.plan["client"][place] == self.broadcast.plan["client"].max():
            self.resident.omega = self.resident.omega * float("nan")
        train(self, place, round, clock)

    monkeypatch.setattr(Worker, "_train_client", broken)
    weights, records = weights_after([*fast, *FEDBUFF, "rounds=3", "faults.nonfinite=drop"])
    for record in records:
        assert record.clients["status"].tolist().count(b"not finite") >= 1
        kept = record.clients["status"] == b"aggregated"
        expected = (1.0 + record.clients["staleness"][kept]) ** -0.5 / kept.sum()
        assert record.clients["rho"][kept] == pytest.approx(expected)
    assert weights.isfinite().all()


def test_an_asynchronous_run_is_priced_on_its_own_clock(fast, tmp_path, capsys):
    assert main([*fast, *FEDBUFF, "rounds=3"]) == 0
    path = tmp_path / "results/fedavg_seed1.h5"
    run = pricing.read(path)
    [priced] = pricing.in_worlds([run], pricing.worlds_for([run], []))
    with reader.open_results(path) as file:
        seconds = reader.read_columns(file, "rounds", ["virtual_seconds"])["virtual_seconds"]
    assert priced.cumulative("seconds") == pytest.approx(seconds)
    assert (priced.bill.bytes["up"] > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["time.driver=fedbuff"], "needs a virtual clock"),
        (["time.driver=fedasync", "world={}"], "set cohort=1"),
        (["time.driver=semi_synchronous", "world={}"], "needs time.period_s"),
        (["time.driver=fedbuff", "world={}", "time.concurrency=7"], "is larger than clients"),
        (
            ["time.driver=fedbuff", "world={}", "selection.policy=label_cover"],
            "needs selection.policy=random",
        ),
        (["time.driver=fedbuff", "world={}", "algorithm.name=scaffold"], "algorithm.name=scaffold decides"),
        (["time.driver=fedbuff", "world={}", "transforms=[top_k]"], "top_k keeps arrays at the clients"),
        (["time.driver=fedbuff", "time.trace=missing.csv"], "time.trace: missing.csv"),
    ],
)
def test_what_needs_synchronous_rounds_is_refused_in_one_line(settings, message, fast, capsys):
    assert main([*fast, *settings]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
