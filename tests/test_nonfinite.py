"""Numerical faults: name or drop a client with non-finite loss or weights; detect overflow of sums."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.edge.attendance import AGGREGATED, NOT_FINITE
from genfl_mpi.federation import algorithms, worker
from genfl_mpi.federation.algorithms import ALGORITHMS
from genfl_mpi.learning.weights import LIMIT, ExactSum, check_sum, fixed_point
from genfl_mpi.results import reader

NOTHING_YET = {
    "clients": {"round": np.empty(0, int)},
    "generated": {"label": [], "image": np.empty((0, 3, 8, 8), np.uint8), "fidelity": []},
}
ROUND, BAD = 2, 3  # the third round, in which clients 1, 3 and 4 are trained


@pytest.fixture
def poisoned(monkeypatch):
    """One client's weights become NaN in the third round."""
    train_client, train = worker.Worker._train_client, worker.train

    def remember(self, place, round, clock):
        poison.active = round == ROUND and self.broadcast.plan["client"][place] in poison.clients
        return train_client(self, place, round, clock)

    def poison(model, *rest):
        report = train(model, *rest)
        if poison.active:
            model.weights[7] = float("nan")
        return report

    poison.clients = {BAD}
    monkeypatch.setattr(worker.Worker, "_train_client", remember)
    monkeypatch.setattr(worker, "train", poison)
    return poison


def everybody(state):
    return [1, 3, 4]


def test_stop_names_client_and_round(fast, poisoned, capsys, tmp_path):
    assert main([*fast, "cohort=6", "rounds=4"]) == 1
    *frames, last = capsys.readouterr().err.splitlines()
    assert f"round {ROUND + 1}, client {BAD}: FloatingPointError: the trained weights are not finite" in last
    # The functions of this file that stand in for the package's count as a user's.
    assert all(frame.startswith((f'  File "{__file__}"', "    ")) for frame in frames)
    with reader.open_results(tmp_path / "results/fedavg_seed1.h5") as file:
        assert file["rounds/round"][:].tolist() == [1, 2]


@pytest.mark.parametrize("algorithm", ["fedavg", "fednova", "scaffold"])
def test_drop_is_a_round_without_the_client(algorithm, fast, poisoned, tmp_path):
    """The round equals that of a cohort without the client: the same average, up to the last bit."""
    overrides = [*fast, f"algorithm.name={algorithm}", "faults.nonfinite=drop", "rounds=3", "cohort=3"]
    records = list(Simulation(overrides=overrides, folder=tmp_path / "a", select=everybody))
    dropped = Simulation(overrides=overrides, folder=tmp_path / "b", select=everybody)
    list(dropped)
    poisoned.clients = set()
    one = {"folder": tmp_path / "c", "run": "both"}
    without = Simulation(overrides=[*overrides[:-1], "cohort=2"], **one, select=lambda state: [1, 4])
    full = Simulation(overrides=[*overrides, "rounds=2"], **one, select=everybody)
    list(full)
    without.restore(2, full.weights.numpy(), full.server.state_arrays(), NOTHING_YET)
    [last] = without
    clients = records[2].clients
    assert (
        clients["client"].tolist() == [1, 3, 4]
        and clients["rho"][1] == 0
        and np.isnan(clients["update_norm"][1])
    )
    assert clients["rho"][[0, 2]] == pytest.approx(last.clients["rho"], rel=1e-12)
    assert np.isfinite(records[2].columns["train_loss"]) and records[2].columns[
        "train_loss"
    ] == pytest.approx(last.columns["train_loss"])
    assert records[2].columns["update_cosine"] == pytest.approx(last.columns["update_cosine"], abs=1e-9)
    assert dropped.weights.numpy() == pytest.approx(without.weights.numpy(), abs=1e-6)
    if algorithm == "scaffold":
        assert dropped.server.trained[BAD] == 2
        controls = [one.server.memory["control_mean"].numpy() for one in (dropped, without)]
        assert controls[0] == pytest.approx(controls[1], abs=1e-6)


def test_kappa_is_of_who_is_left(tiny, poisoned):
    tiny = [
        *tiny,
        "data.name=synthetic",
        "data.size=8",
        "data.samples=400",
        "rounds=3",
        "kappa.policy=amount",
        "kappa.quality=5",
    ]
    simulation = Simulation(overrides=[*tiny, "cohort=3", "faults.nonfinite=drop"], select=everybody)
    *_, last = simulation
    assert last.clients["status"].tolist() == [AGGREGATED, NOT_FINITE, AGGREGATED]
    made, samples = 5 * last.columns["images_used"], simulation.server.state.samples[[1, 4]].sum()
    assert last.columns["kappa2"] == pytest.approx(made / (made + samples))


def test_drop_does_not_depend_on_the_ranks_and_is_said(fast, tmp_path):
    script = tmp_path / "poison.py"
    script.write_text("""
import sys
from genfl_mpi.federation import worker
from genfl_mpi.cli import main
train_client = worker.Worker._train_client
train = worker.train
state = []
def remember(self, place, round, clock):
    state[:] = [round, self.broadcast.plan["client"][place]]
    return train_client(self, place, round, clock)
def poison(model, *rest):
    report = train(model, *rest)
    if state[0] == 1 and state[1] % 2 or state[0] == 2:
        model.weights[7] = float("inf")
    return report
worker.Worker._train_client, worker.train = remember, poison
sys.exit(main(sys.argv[1:]))
""")
    for ranks in (1, 3):
        done = mpirun(
            ranks,
            script,
            *fast,
            "faults.nonfinite=drop",
            "cohort=6",
            "rounds=4",
            f"output={tmp_path}/{ranks}",
        )
        assert done.returncode == 0 and "dropped, not finite: clients 1, 3, 5" in done.stdout, done.stderr
        assert (
            "dropped, not finite: clients 0, 1, 2, 3, 4, 5; "
            "no client is aggregated: the weights stay unchanged" in done.stdout
        )
    assert reader.digests(tmp_path / "1/fedavg_seed1.h5") == reader.digests(tmp_path / "3/fedavg_seed1.h5")


@pytest.mark.parametrize(
    "more",
    [
        ["algorithm.name=fedavg"],
        ["algorithm.name=fednova"],
        ["algorithm.name=scaffold"],
        ["algorithm.name=fedadam"],
        ["rho.policy=loss"],
    ],
    ids=str,
)
def test_nobody_left_keeps_the_weights(more, fast, poisoned, tmp_path):
    """Nor does what the server remembers change, and the rounds after are as usual."""
    poisoned.clients, seen = set(range(6)), []
    simulation = Simulation(overrides=[*fast, "faults.nonfinite=drop", "rounds=4", *more], folder=tmp_path)
    for record in simulation:
        state = {
            name: array
            for name, array in simulation.server.state_arrays().items()
            if not name.startswith("pace.")
        }
        seen.append(
            (record, simulation.weights.numpy().copy(), {name: array.copy() for name, array in state.items()})
        )
    (_, before, memory), (lost, after, later), (last, end, _) = seen[1:]
    assert np.array_equal(before, after) and not np.array_equal(after, end)
    assert memory.keys() == later.keys() and all(np.array_equal(memory[name], later[name]) for name in memory)
    assert (
        (lost.clients["status"] == NOT_FINITE).all()
        and not lost.clients["rho"].any()
        and lost.columns["clients_aggregated"] == 0
    )
    assert (
        lost.accuracy == seen[1][0].accuracy
        and np.isnan(lost.columns["train_loss"])
        and lost.columns["kappa2"] == 0
    )
    assert (last.clients["status"] == AGGREGATED).all() and last.clients["rho"].sum() > 0


def test_nobody_left_is_the_augmented_model_alone(fast, poisoned, monkeypatch, capsys):
    """As in a world that keeps all clients away."""
    monkeypatch.setattr("test_nonfinite.ROUND", 0)
    poisoned.clients = set(range(6))
    fast = [*fast, "method=pool", "data.public_pool=20", "rounds=1"]
    found = Simulation(overrides=[*fast, "faults.nonfinite=drop"])
    [record] = found
    poisoned.clients = set()
    expected = Simulation(overrides=[*fast, "world={enforced: true, dropout: 1}"])
    list(expected)
    assert np.array_equal(found.weights, expected.weights) and record.columns["kappa2"] == 1
    assert (record.clients["status"] == NOT_FINITE).all() and not record.clients["rho"].any()
    poisoned.clients = set(range(6))
    assert main([*fast, "faults.nonfinite=drop"]) == 0
    assert (
        "dropped, not finite: clients" in (said := capsys.readouterr().out)
        and "no client is aggregated: the augmented model becomes the global model" in said
    )


def test_a_loss_that_is_not_finite_is_a_fault_too(fast, capsys):
    assert main([*fast, "training.lr=1e30", "rounds=2"]) == 1
    assert "round 1, client" in (said := capsys.readouterr().err) and "not finite" in said


def test_an_overflow_of_the_exact_sum_is_noticed(fast, monkeypatch):
    """FedNova's weights may add up to more than 1: every summand can be represented, and the sum cannot."""
    large = torch.tensor([LIMIT * 0.9])
    total = ExactSum(np.zeros(1, dtype=np.int64))
    largest = [total.add(0.9, large)[0], total.add(0.9, large)[0]]
    check_sum(np.array([0.5, 0.5]), np.array(largest))
    with pytest.raises(ArithmeticError, match="too large to be summed"):
        check_sum(np.array([0.9, 0.9]), np.array(largest))
    with pytest.raises(ArithmeticError, match="too large"):
        total.add(2.0, large)
    train = worker.train

    def huge(model, *rest):
        report = train(model, *rest)
        model.weights[0] = LIMIT * 0.4
        return report

    monkeypatch.setattr(worker, "train", huge)
    assert len(list(Simulation(overrides=[*fast, "rounds=1"]))) == 1
    threefold = replace(ALGORITHMS["fednova"], coefficients=lambda cohort, config: 3 * cohort.rho)
    monkeypatch.setitem(algorithms.ALGORITHMS, "fednova", threefold)
    with pytest.raises(ArithmeticError, match="too large to be summed") as caught:
        list(Simulation(overrides=[*fast, "rounds=1", "algorithm.name=fednova"]))
    assert caught.value.__notes__ == ["round 1"]


@pytest.mark.parametrize("summands", [1, 20, 10**6])
def test_the_sum_of_losses_cannot_overflow(summands):
    largest = 2**42 / summands * 0.999
    assert fixed_point(largest, summands) * summands < 2**63
    with pytest.raises(ArithmeticError, match="not finite or too large"):
        fixed_point(largest * 1.01, summands)
    for value in (largest * 1.01, np.inf, np.nan):
        assert largest * 2**20 < fixed_point(value, summands, capped=True) <= 2**63 // summands
