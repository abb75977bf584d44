"""Federated algorithms: degenerate cases equal FedAvg, and the others agree with their papers."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mpirun
from torch import nn

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.config.sections.local_training import LocalTraining
from genfl_mpi.config.settings import Config
from genfl_mpi.edge.attendance import AGGREGATED
from genfl_mpi.federation.algorithms import ALGORITHMS
from genfl_mpi.federation.algorithms.interface import Cohort, Received
from genfl_mpi.federation.worker import Worker
from genfl_mpi.learning.batches import batches, local_batches
from genfl_mpi.learning.geometry import cosine, distance, mean_cosine
from genfl_mpi.results import checkpoint, reader


def weights_of(folder, method="fedavg"):
    with reader.open_results(folder / f"{method}_seed1.h5") as file:
        return file["weights"][:]


def test_fedprox_with_mu_zero_is_fedavg(tiny, tmp_path):
    for name, algorithm in (
        ("fedavg", []),
        ("zero", ["algorithm.name=fedprox", "algorithm.mu=0"]),
        ("one", ["algorithm.name=fedprox", "algorithm.mu=1"]),
    ):
        assert main([*tiny, *algorithm, f"output={tmp_path}/{name}"]) == 0
    digests = {name: reader.digests(tmp_path / name / "genfl_seed1.h5") for name in ("fedavg", "zero", "one")}
    assert digests["zero"] == digests["fedavg"] and digests["one"][0] != digests["fedavg"][0]


@pytest.mark.slow
def test_fedprox_keeps_the_clients_near(tiny, tmp_path):
    """The proximal term shortens the distance from the initial weights (Li et al. 2020)."""
    ways = []
    for mu in (0, 1, 100):
        assert (
            main(
                [
                    *tiny,
                    "method=fedavg",
                    "rounds=1",
                    "training.epochs=3",
                    "algorithm.name=fedprox",
                    f"algorithm.mu={mu}",
                    "training.lr=0.01",
                    f"output={tmp_path}/{mu}",
                ]
            )
            == 0
        )
        ways.append(np.linalg.norm(weights_of(tmp_path / str(mu)) - start(tiny)))
    assert ways[0] > ways[1] > ways[2] > 0


def start(tiny):
    from genfl_mpi import Simulation

    return Simulation(overrides=[*tiny, "method=fedavg"]).weights.numpy()


def test_fednova_with_equal_steps_is_fedavg_to_rounding(tiny, tmp_path):
    for name in ("fedavg", "fednova"):
        assert (
            main(
                [
                    *tiny,
                    "method=fedavg",
                    "partition.scheme=iid",
                    "training.momentum=0.5",
                    f"algorithm.name={name}",
                    f"output={tmp_path}/{name}",
                ]
            )
            == 0
        )
    one, other = weights_of(tmp_path / "fedavg"), weights_of(tmp_path / "fednova")
    assert np.abs(one - other).max() < 1e-6 and np.linalg.norm(one) > 1


def coefficients(samples, epochs, momentum=0.0):
    """Return FedNova's coefficients of two clients with equal rho."""
    config = Config(training=LocalTraining(batch_size=64, momentum=momentum))
    cohort = Cohort(np.arange(2), np.array(samples), np.full(2, epochs), np.array([0.5, 0.5]))
    return ALGORITHMS["fednova"].coefficients(cohort, config)


def test_fednovas_weights_by_hand():
    # Two steps and eight: tau_eff = (2 + 8) / 2 = 5, so the clients' coefficients are 5 / 2 and 5 / 8.
    assert coefficients([64, 256], 2) == pytest.approx([1.25, 0.3125])
    # Momentum 1/2, two steps: (1 - 1/4) + (1 - 1/2) over 1/2 = 1.5 + 1 = 2.5; one step: 1. tau_eff = 1.75.
    assert coefficients([128, 64], 1, 0.5) == pytest.approx([0.5 * 1.75 / 2.5, 0.5 * 1.75])


def test_step_count_matches_training():
    for count in (1, 2, 63, 64, 65, 66, 128, 129):
        assert local_batches(count, 64) == len(batches(count, 64, np.random.default_rng(0)))


def test_server_optimizers_by_hand():
    """Two steps of one parameter with delta 1, then 3; the second weight is a statistic and is averaged."""

    def steps(**settings):
        state, omega, path = {}, torch.tensor([0.0, 0.0]), []
        for delta in (1.0, 3.0):
            average = torch.tensor([omega[0].item() + delta, 7.0], dtype=torch.float64)
            new = ALGORITHMS[settings["name"]].aggregate(
                state, omega, average, Received(average, 1.0, {}, 1), Config(algorithm=settings)
            )
            path.append(new[0].item() - omega[0].item())
            assert new[1] == 7
            omega = new.float()
        return path

    assert steps(name="fedavg") == [1, 3]
    assert steps(name="fedavgm", beta1=0.5, server_lr=2) == pytest.approx([2, 2 * 3.5])
    # m: 0.5, 1.75. v from tau^2 = 1:
    # Adam 0.75 + 0.25 = 1, 0.75 + 0.25 * 9 = 3; Yogi 1 - 0 = 1, 1 + 0.25 * 9 = 3.25.
    adam = {"beta1": 0.5, "beta2": 0.75, "tau": 1.0}
    assert steps(name="fedadam", **adam) == pytest.approx([0.5 / 2, 1.75 / (3**0.5 + 1)])
    assert steps(name="fedyogi", **adam) == pytest.approx([0.5 / 2, 1.75 / (3.25**0.5 + 1)])


@pytest.mark.parametrize("name", ["fednova", "fedavgm", "fedadam", "fedyogi", "scaffold"])
def test_continued_runs_restore_the_servers_moments(tiny, tmp_path, name):
    algorithm = [f"algorithm.name={name}", "algorithm.server_lr=0.1"]
    assert main([*tiny, *algorithm, "rounds=3", f"output={tmp_path}/whole"]) == 0
    assert main([*tiny, *algorithm, "rounds=2"]) == 0
    assert main([*tiny, *algorithm, "rounds=3"]) == 0
    assert reader.digests(tmp_path / "results/genfl_seed1.h5") == reader.digests(
        tmp_path / "whole/genfl_seed1.h5"
    )


def network_with_statistics(classes, shape):
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, classes)
    )


def test_fednova_averages_statistics_of_batchnorm(fast, monkeypatch):
    """The coefficients do not sum to 1; a variance computed from differences would become negative."""
    add, seen = Worker._add, []
    monkeypatch.setattr(
        Worker,
        "_add",
        lambda self, place, rho, weights, report: (
            seen.append((rho, weights.double())) or add(self, place, rho, weights, report)
        ),
    )
    simulation = Simulation(
        overrides=[
            *fast,
            "algorithm.name=fednova",
            "cohort=6",
            "rounds=1",
            "rho.policy=uniform",
            "training.batch_size=2",
            "partition.alpha=0.05",
            "partition.min_samples=2",
            "model.name=test_algorithms:network_with_statistics",
        ]
    )
    before, parameters = simulation.weights.double(), simulation.model.parameters
    sizes = simulation.data["label_histograms"].sum(1)
    assert sizes.max() > 3 * sizes.min()
    list(simulation)
    weight = sum(rho for rho, _ in seen)
    total = sum(rho * weights for rho, weights in seen)
    assert weight > 1.3 and len(simulation.weights) == parameters + 8
    assert torch.allclose(
        simulation.weights[:parameters].double(), (total + (1 - weight) * before)[:parameters], atol=1e-6
    )
    assert torch.allclose(simulation.weights[parameters:].double(), total[parameters:] / weight, atol=1e-6)
    largest = torch.stack([weights for _, weights in seen]).amax(0)[parameters:]
    assert (simulation.weights[parameters:] <= largest + 1e-6).all(), "not above the clients' statistics"


def test_a_run_whose_moments_are_lost_is_not_continued(tiny, tmp_path, capsys):
    assert main([*tiny, "algorithm.name=fedavgm"]) == 0
    checkpoint.remove(tmp_path / "results/genfl_seed1.h5")
    assert main([*tiny, "algorithm.name=fedavgm", "rounds=3"]) == 2
    assert "without the memory of the server of fedavgm" in capsys.readouterr().err


def test_a_run_without_aggregated_clients_so_far_continues(fast, tmp_path):
    """Its server has no moments yet, which differs from lost moments."""
    fast = [*fast, "algorithm.name=fedavgm", "cohort=1", "world={enforced: true, dropout: 0.5, seed: 4}"]
    assert main([*fast, "rounds=4", f"output={tmp_path}/whole"]) == 0
    with reader.open_results(tmp_path / "whole/fedavg_seed1.h5") as file:
        status = file["clients/status"][:].tolist()
    assert status[0] != AGGREGATED and AGGREGATED in status
    assert main([*fast, "rounds=1"]) == 0
    assert main([*fast, "rounds=4"]) == 0
    assert reader.digests(tmp_path / "results/fedavg_seed1.h5") == reader.digests(
        tmp_path / "whole/fedavg_seed1.h5"
    )


def test_scaffold_with_zero_variates_is_fedavg(tiny, tmp_path):
    """All variates are zero in the first round."""
    for name in ("fedavg", "scaffold"):
        assert main([*tiny, "rounds=1", f"algorithm.name={name}", f"output={tmp_path}/{name}"]) == 0
    assert reader.digests(tmp_path / "fedavg/genfl_seed1.h5") == reader.digests(
        tmp_path / "scaffold/genfl_seed1.h5"
    )


def smooth_network(classes, shape):
    """A model without ReLU and max-pooling, which can turn rounding into a large difference."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 8, 3), nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(288, classes)
    )


def test_scaffold_against_a_plain_loop(tiny, tmp_path, monkeypatch):
    """Two rounds of full cohorts, option II as in the paper; any number of ranks."""
    from conftest import mpirun

    from genfl_mpi import Simulation
    from genfl_mpi.data.clients import client_data
    from genfl_mpi.learning.training import normalise, train
    from genfl_mpi.util import streams

    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    )
    overrides = [
        *tiny,
        "method=fedavg",
        "cohort=6",
        "algorithm.name=scaffold",
        "model.name=test_algorithms:smooth_network",
    ]
    for ranks in (1, 2):
        done = mpirun(ranks, "-m", "genfl_mpi", *overrides, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
    assert reader.digests(tmp_path / "1/fedavg_seed1.h5") == reader.digests(tmp_path / "2/fedavg_seed1.h5")
    one = Simulation(overrides=overrides, folder=tmp_path / "unused")
    training, size, x = one.config.training, one.model.parameters, one.weights.double().clone()
    own, common = torch.zeros(6, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    sizes = np.diff(one.data["pointers"])
    for round in range(2):
        new_x, new_own = torch.zeros_like(x), own.clone()
        for n in range(6):
            images, labels = client_data(one.data, n, one.config)
            images = normalise(torch.from_numpy(images), one.about.mean, one.about.std, torch.device("cpu"))
            rng = streams.generator(1, "client", round, n)
            train(
                one.model,
                x.float(),
                images,
                torch.from_numpy(labels),
                training,
                rng,
                correction=(common - own[n]).float(),
            )
            y = one.model.weights.double()
            steps = len(batches(len(images), training.batch_size, np.random.default_rng(0)))
            new_own[n] = own[n] - common + (x - y)[:size] / (steps * training.lr)
            new_x += sizes[n] / sizes.sum() * y
        common = common + (new_own - own).sum(0) / 6
        x, own = new_x, new_own
    assert np.abs(weights_of(tmp_path / "1") - x.numpy()).max() < 1e-6 and common.abs().max() > 1e-3


@pytest.fixture
def skewed(tiny):
    """Return a function that computes a run on skewed data, and returns it with its records."""
    from genfl_mpi import Simulation

    def run(*overrides):
        one = Simulation(overrides=[*tiny, "method=fedavg", "cohort=6", "training.lr=0.02", *overrides])
        return one, list(one)

    return run


@pytest.mark.slow
def test_fednova_follows_the_data_not_the_steps(skewed):
    """One client makes five times the steps of another (Wang et al. 2020, section 3).

    FedAvg's update is biased towards its objective; FedNova's follows the gradient over all data.
    """
    from genfl_mpi.learning.training import normalise

    towards = {}
    for name in ("fedavg", "fednova"):
        one, _ = skewed(
            "rounds=1",
            "partition.alpha=0.05",
            "training.lr=1e-5",
            "training.batch_size=16",
            f"algorithm.name={name}",
        )
        after, size, data = one.weights.clone(), one.model.parameters, one.data
        again, _ = skewed("rounds=1", "partition.alpha=0.05", "training.lr=1e-12", f"algorithm.name={name}")
        again.model.weights.copy_(again.weights)
        again.model.gradient()  # clears the gradient of its training
        images = normalise(
            torch.from_numpy(data["train_images"].copy()), one.about.mean, one.about.std, torch.device("cpu")
        )
        nn.functional.cross_entropy(
            again.model.module(images), torch.from_numpy(data["train_labels"].copy())
        ).backward()
        towards[name] = torch.cosine_similarity(
            again.weights[:size] - after[:size], again.model.gradient(), dim=0
        ).item()
    assert towards["fednova"] > towards["fedavg"] + 0.02 and towards["fednova"] > 0.9


SMALL_STEPS = ["rounds=6", "training.lr=0.005"]


@pytest.mark.slow
def test_server_momentum_is_faster_where_clients_make_small_steps(skewed):
    """Hsu et al. 2019: the same small client updates move the model further."""
    _, plain = skewed(*SMALL_STEPS)
    _, momentum = skewed(*SMALL_STEPS, "algorithm.name=fedavgm")
    assert momentum[-1].loss < plain[-1].loss - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedadam", "fedyogi"])
def test_adaptive_servers_are_faster_where_clients_make_small_steps(skewed, algorithm):
    """Reddi et al. 2021: they compensate for small updates, most for the coordinates that change least."""
    _, plain = skewed(*SMALL_STEPS)
    _, adaptive = skewed(*SMALL_STEPS, f"algorithm.name={algorithm}", "algorithm.server_lr=0.05")
    assert adaptive[-1].accuracy > plain[-1].accuracy + 0.03


@pytest.mark.slow
def test_scaffold_keeps_the_clients_together(skewed):
    """The variates remove the clients' differences from their gradients (Karimireddy et al. 2020).

    So the updates of skewed clients, which diverge under FedAvg, agree.
    """
    settings = ["rounds=4", "training.epochs=2", "partition.scheme=classes", "partition.classes_per_client=2"]
    _, plain = skewed(*settings)
    _, controlled = skewed(*settings, "algorithm.name=scaffold")
    assert controlled[0].columns["update_cosine"] == plain[0].columns["update_cosine"], (
        "the variates begin with zero"
    )
    assert controlled[-1].columns["update_cosine"] > plain[-1].columns["update_cosine"] + 0.3


@pytest.mark.slow
def test_shared_data_keep_the_clients_together(skewed):
    """Zhao et al. 2018: a few samples shared by all clients let skewed clients agree, and the model learn."""
    settings = ["rounds=4", "partition.alpha=0.05", "data.public_pool=500"]
    _, plain = skewed(*settings)
    _, shared = skewed(*settings, "data.shared=500")
    assert (
        shared[-1].columns["update_cosine"] > plain[-1].columns["update_cosine"] + 0.1
        and shared[-1].accuracy > plain[-1].accuracy
    )


def test_a_lost_variate_is_named(tiny, tmp_path, capsys):
    run = [*tiny, "cohort=6", "algorithm.name=scaffold"]
    assert main([*run, "rounds=3"]) == 0
    folder = tmp_path / "results/genfl_seed1.variates"
    there = sorted(file.name for file in folder.iterdir())
    assert there == ["2_0.states", "3_0.states"], "state files of the last two checkpoints are kept"
    file = folder / "3_0.states"
    content = bytearray(file.read_bytes())
    content[3 * len(content) // 6 + 99] ^= 1
    file.write_bytes(content)
    assert main([*run, "rounds=4"]) == 2
    assert re.search(r"3_0.states: the state of client \d is damaged", capsys.readouterr().err)
    file.unlink()
    assert main([*run, "rounds=4"]) == 2
    assert re.search(r"3_0.states: the state of client \d is missing", capsys.readouterr().err)
    assert main([*run, "training.momentum=0.5"]) == 2
    assert "scaffold needs training.momentum=0" in capsys.readouterr().err


def test_the_pool_replaces_generated_data(tiny, tmp_path, capsys):
    """A control: with kappa2 = 1 the server's model alone, trained on the public pool."""
    from genfl_mpi import Simulation

    run = [*tiny, "method=pool", "data.public_pool=300"]
    assert main(run) == 0
    one = Simulation(overrides=[*run, "kappa.kappa2=1"])
    for record in one:
        assert record.generated == [] and record.columns["images_used"] == 300
    assert one.server.images.training_images()[1].tolist() == np.repeat(np.arange(10), 30).tolist()
    capsys.readouterr()
    assert main([*tiny, "method=pool"]) == 2
    assert "method=pool needs data.public_pool" in capsys.readouterr().err


def test_clients_make_up_for_the_servers_steps(tiny, capsys):
    """A control: FedAvg whose clients make as many more steps, in whole epochs; nothing is generated."""
    from genfl_mpi import Simulation

    run = [
        *tiny,
        "method=matched",
        "rounds=3",
        "training.epochs=2",
        "training.batch_size=8",
        "generation.per_round=20",
        "generation.cap=40",
    ]
    one = Simulation(overrides=run)
    sizes = np.diff(one.data["pointers"])
    for record, images in zip(one, (200, 400, 400)):
        server = 2 * images / 8
        clients = local_batches(sizes[record.clients["client"]], 8).sum()
        [epochs] = set(record.clients["epochs"])
        assert 0 <= (epochs - 2) * clients - server < clients and epochs > 2
        assert record.generated == [] and record.columns["images"] == 0 and record.columns["kappa2"] == 0
    assert main([*run, "generation.plan=cohort_deficit"]) == 2
    assert "does not know the number of images in advance" in capsys.readouterr().err


def test_shared_data_are_added_to_every_clients_data(tiny, tmp_path, capsys):
    """Zhao et al. 2018: each client trains on them too, and its weight grows accordingly."""
    from genfl_mpi import Simulation
    from genfl_mpi.data import public
    from genfl_mpi.data.clients import client_data

    one = Simulation(overrides=[*tiny, "method=fedavg", "data.public_pool=300", "data.shared=50"])
    given = public.public_pool(one.data["train_labels"], 50, 10)
    for client in range(6):
        images, labels = client_data(one.data, client, one.config)
        assert len(labels) == np.diff(one.data["pointers"])[client] + 50 == one.server.state.samples[client]
        assert (
            np.array_equal(images[-50:], one.data["train_images"][given])
            and np.bincount(labels[-50:]).tolist() == [5] * 10
        )
    assert main([*tiny, "data.shared=50"]) == 2
    assert "data.shared=50 exceeds data.public_pool=" in capsys.readouterr().err


def test_mean_cosine_of_updates():
    """Compare with the mean over all pairs."""
    rng = np.random.default_rng(0)
    rho, changes = rng.dirichlet(np.ones(5)), rng.normal(size=(5, 40)) + 0.5
    norms = np.linalg.norm(changes, axis=1)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    weights = [rho[i] * norms[i] * rho[j] * norms[j] for i, j in pairs]
    cosines = [changes[i] @ changes[j] / norms[i] / norms[j] for i, j in pairs]
    assert mean_cosine(rho, norms, np.linalg.norm(rho @ changes)) == pytest.approx(
        np.average(cosines, weights=weights)
    )
    assert np.isnan(mean_cosine(np.ones(1), np.ones(1), 1.0))
    before, one, other = torch.zeros(3), torch.tensor([1.0, 1.0, 9.0]), torch.tensor([0.0, 2.0, -9.0])
    assert cosine(one, other, before, 2) == pytest.approx(0.5**0.5) and distance(
        one, other, 2
    ) == pytest.approx(2**0.5)
    assert np.isnan(cosine(before, other, before, 2))


def test_skewed_clients_disagree_more(tiny):
    """Updates of clients with few labels diverge more than those of clients with all labels."""
    from genfl_mpi import Simulation

    seen = {}
    for scheme in ("classes", "iid"):
        run = Simulation(
            overrides=[
                *tiny,
                "method=fedavg",
                "rounds=1",
                "training.epochs=2",
                f"partition.scheme={scheme}",
                "partition.classes_per_client=2",
            ]
        )
        seen[scheme] = next(iter(run)).columns["update_cosine"]
    assert seen["classes"] < seen["iid"] - 0.1


MINE = """
import torch
from genfl_mpi.federation.algorithms.interface import Algorithm, Array, Contribution, Stage


def declare(parameters, config):
    return {"momentum": Array((parameters,), "server")}


def aggregate(state, omega, average, received, config):
    parameters = received.parameters
    before = omega[:parameters].double()
    state["momentum"] = 0.9 * state.get("momentum", 0) + (average[:parameters] - before)
    return torch.cat([before + state["momentum"], average[parameters:]])


MOMENTUM = Algorithm("momentum", declare=declare, aggregate=aggregate)

# Two local trainings in a row, the second with a proximal term; and a count of trainings, each and total.
COUNTED = Algorithm(
    "counted",
    declare=lambda parameters, config: {
        "own": Array((2,), "client"),
        "sum": Array((2,), "sum", fraction_bits=24),
        "total": Array((2,), "server"),
    },
    stages=lambda client, omega, arrays, own, config: [Stage(1), Stage(1, prox=1.0)],
    contribute=lambda client, omega, trained, arrays, own, config: Contribution(
        {"sum": (1.0, own["own"] + 1)}, {"own": own["own"] + 1}),
    aggregate=lambda state, omega, average, received, config: (
        state.update(total=received.sums["sum"]) or average))
NONE = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "my_algorithms.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_algorithms", None)


def test_a_users_algorithm_works_like_a_built_in_one(fast, mine, tmp_path):
    """Server momentum in a user's file equals fedavgm with beta1 = 0.9 bit for bit, also when continued."""
    ours = [*fast, "rounds=4", f"output={tmp_path}/ours", "algorithm.name=fedavgm", "algorithm.beta1=0.9"]
    assert main(ours) == 0
    for rounds in (2, 4):
        assert main([*fast, f"rounds={rounds}", "algorithm.name=my_algorithms:MOMENTUM"]) == 0
    assert (weights_of(tmp_path / "ours") == weights_of(tmp_path / "results")).all()


@pytest.mark.parametrize("ranks", [2, 3])
def test_stages_sums_and_client_arrays_do_not_depend_on_the_ranks(ranks, fast, mine, tmp_path):
    run = [*fast, "rounds=3", "algorithm.name=my_algorithms:COUNTED"]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = mpirun(ranks, "-m", "genfl_mpi", *run, f"output={tmp_path}/many", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    simulation = Simulation(overrides=run, folder=tmp_path / "states")
    list(simulation)
    assert (simulation.weights.numpy() == weights_of(tmp_path / "many")).all()
    last = np.flatnonzero(simulation.server.trained == 3)
    where = simulation.server.locations
    counts = [simulation.client_states.read(client, 3, where[client])["own"] for client in last]
    assert (
        simulation.server.memory["total"].tolist() == np.sum(counts, 0).tolist()
        and np.sum(counts) >= 2 * len(last) == 6
    )


def test_invalid_algorithms_are_refused_in_one_line(fast, mine, capsys):
    for name, said in (
        ("my_algorithms:NONE", "is not an instance of"),
        ("my_algorithms:declare", "is not an instance of"),
        ("fedprx", "did you mean fedprox?"),
    ):
        assert main([*fast, f"algorithm.name={name}"]) == 2
        assert said in (line := capsys.readouterr().err) and line.count("\n") == 1
