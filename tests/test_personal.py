"""Personal models of the clients, their local test data, and their evaluation, on any number of ranks."""

import numpy as np
import pytest
import torch
from conftest import FAST, mpirun

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.data.local_test import divide_test
from genfl_mpi.federation.personal import STATE
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

RUN = [*FAST, "rounds=2", "personal.every=1"]


# Local test data.


def test_local_test_sets_follow_the_label_mix_and_are_disjoint():
    histograms = np.array([[30, 0, 1], [10, 0, 1], [0, 0, 1]])
    labels = np.repeat([0, 1, 2], [40, 10, 3])
    pointers, indices = divide_test(histograms, labels, seed=1)
    parts = [indices[first:last] for first, last in zip(pointers, pointers[1:])]
    assert [np.bincount(labels[part], minlength=3).tolist() for part in parts] == [
        [30, 0, 1],
        [10, 0, 1],
        [0, 0, 1],
    ], "no client gets samples of a class that none holds"
    assert len(set(indices.tolist())) == len(indices) == 43
    assert (divide_test(histograms, labels, 1)[1] == indices).all()
    assert (divide_test(histograms, labels, 2)[1] != indices).any()


def test_remainders_of_local_test_sets_go_to_the_largest_fractions():
    pointers, _ = divide_test(np.array([[1], [2], [2]]), np.zeros(3, dtype=int), seed=1)
    assert np.diff(pointers).tolist() == [1, 1, 1], "shares 0.6, 1.2, 1.2"


# Methods.


def finished(*overrides, folder=None):
    simulation = Simulation(overrides=[*RUN, *overrides], folder=folder)
    return simulation, list(simulation)


def state(simulation, client):
    server = simulation.server
    since = int(server.trained[client])
    return since, simulation.client_states.read(client, since, server.locations[client])[STATE]


def test_fedper_without_personal_layers_is_fedavg(tmp_path):
    for name, more in {"fedavg": "personal.method=global", "fedper": "personal.method=fedper"}.items():
        assert main([*RUN, more, "personal.layers=0", f"output={tmp_path}/{name}"]) == 0
    paths = [tmp_path / name / "fedavg_seed1.h5" for name in ("fedavg", "fedper")]
    assert reader.digests(paths[0]) == reader.digests(paths[1])
    assert not paths[1].with_suffix(".variates").exists()


@pytest.mark.parametrize("method", ["global", "finetune", "ditto"])
def test_the_global_model_is_that_of_fedavg(method, tmp_path):
    plain = Simulation(overrides=[*FAST, "rounds=2"])
    list(plain)
    personal, records = finished(f"personal.method={method}", folder=tmp_path)
    assert torch.equal(plain.weights, personal.weights)
    same = records[-1].personal["global_accuracy"] == records[-1].personal["accuracy"]
    assert same.all() == (method == "global")


@pytest.mark.parametrize("method", ["fedper", "fedrep"])
def test_the_last_layer_stays_at_the_clients(method, tmp_path):
    before = Simulation(overrides=RUN).weights.clone()
    simulation, _ = finished(f"personal.method={method}", "personal.epochs=1", folder=tmp_path)
    head, parameters = simulation.personal.head, simulation.model.parameters
    assert head.stop == parameters and 0 < head.stop - head.start < parameters / 2
    assert torch.allclose(simulation.weights[head], before[head], rtol=0, atol=2.0**-38)
    assert not torch.allclose(simulation.weights[: head.start], before[: head.start], rtol=0, atol=1e-4)
    trained = [client for client in range(6) if simulation.server.trained[client]]
    heads = [state(simulation, client)[1] for client in trained]
    assert all(one.shape == (head.stop - head.start,) for one in heads)
    assert not np.allclose(heads[0], heads[1], atol=1e-4)


def test_fedrep_trains_the_head_with_the_body_fixed_and_then_the_body(tmp_path):
    simulation = Simulation(overrides=[*RUN, "personal.method=fedrep", "cohort=1"], folder=tmp_path)
    personal, omega = simulation.personal, simulation.weights.clone()
    images, labels = simulation.parts.worker.dataset.load(0)
    settings = simulation.config.training
    weights, [report] = personal.train_head(omega, images, labels, settings, 0, 0)
    head = personal.head
    assert torch.equal(weights[: head.start], omega[: head.start]) and report.samples == len(labels)
    assert not torch.equal(weights[head], omega[head])
    assert all(parameter.requires_grad for parameter in simulation.model.module.parameters())
    with personal.training_body():
        flags = [parameter.requires_grad for parameter in simulation.model.module.parameters()]
    assert flags[0] and not flags[-1] and not flags[-2]


def test_ditto_without_pull_is_local_training(tmp_path):
    """v_n does not depend on the global model but for its start."""
    run = ["personal.method=ditto", "personal.pull=0", "cohort=6", "personal.epochs=1"]
    found = []
    for number, more in enumerate((["training.lr=0.1"], ["algorithm.name=fedavgm", "algorithm.server_lr=3"])):
        simulation, _ = finished(*run, *more, folder=tmp_path / str(number))
        found.append([state(simulation, client) for client in range(6)])
    for (since, one), (_, other) in zip(*found):
        assert since == 2 and (one == other).all()


def test_a_strong_pull_of_ditto_keeps_the_personal_model_near_the_global_one(tmp_path):
    distances = []
    for pull in (0, 5):
        run = ["personal.method=ditto", f"personal.pull={pull}", "rounds=1", "cohort=6"]
        before = Simulation(overrides=RUN).weights.numpy().copy()
        simulation, _ = finished(*run, folder=tmp_path / str(pull))
        distances.append(np.linalg.norm([state(simulation, client)[1] - before for client in range(6)]))
    assert distances[1] < 0.7 * distances[0]


def test_ditto_beats_fedavg_locally_on_skewed_labels(tmp_path):
    run = [*FAST, "data.name=mnist5k", "partition.alpha=0.1", "clients=5", "cohort=5", "rounds=3"]
    run += ["personal.method=ditto", "personal.every=3", "personal.epochs=2"]
    *_, last = Simulation(overrides=run, folder=tmp_path)
    weights = last.personal["samples"]
    glob, own = (weights @ last.personal[name] / weights.sum() for name in ("global_accuracy", "accuracy"))
    assert own > glob


# Runs.


@pytest.mark.parametrize("method", ["fedrep", "ditto"])
def test_personal_models_do_not_depend_on_the_ranks_or_an_interruption(method, tmp_path):
    run = [*RUN, "rounds=3", f"personal.method={method}", "personal.epochs=1"]
    done = mpirun(3, "-m", "genfl_mpi", *run, f"output={tmp_path}/three")
    assert done.returncode == 0, done.stderr
    assert main([*run, f"output={tmp_path}/whole"]) == 0
    for rounds in (1, 3):
        assert main([*run, f"rounds={rounds}", f"output={tmp_path}/parts"]) == 0
    found = {reader.digests(tmp_path / name / "fedavg_seed1.h5") for name in ("three", "whole", "parts")}
    assert len(found) == 1


def test_all_clients_are_evaluated_every_k_rounds(tmp_path):
    _, records = finished("rounds=4", "personal.every=2", "personal.method=finetune")
    assert [len(record.personal.get("client", ())) for record in records] == [0, 6, 0, 6]
    table = records[-1].personal
    assert table["client"].tolist() == list(range(6)) and table["round"].tolist() == [4] * 6
    known = table["samples"] > 0
    assert known.any() and ((table["accuracy"][known] >= 0) & (table["accuracy"][known] <= 1)).all()


def test_the_figure_shows_the_distribution_over_clients(tmp_path):
    assert main([*RUN, "personal.method=finetune", f"output={tmp_path}", "--quiet"]) == 0
    assert main(["plot", str(tmp_path), "--figure", "personal", "-o", f"{tmp_path}/a.png"]) == 0
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (["personal.method=ditto", "algorithm.name=scaffold"], "keeps a state of each client, and so does"),
        (["personal.method=fedper", "training.clients_per_batch=2"], "needs training.clients_per_batch=1"),
        (["personal.method=fedper", "personal.layers=99"], "the model has only"),
        (["personal.method=fedrep", "model.trained=head"], "are all that is trained with model.trained=head"),
    ],
)
def test_what_does_not_fit_is_one_line(run, message, fast, capsys):
    assert main([*fast, *run]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said
    with pytest.raises(UserError, match=message):
        Simulation(overrides=[*FAST, *run])
