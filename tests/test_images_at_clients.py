"""Generated images at the clients, sent or made by them: who trains on what, and what that costs."""

import os
import signal

import numpy as np
import pytest
import torch
from conftest import FAST, TINY, Job, mpirun

from genfl_mpi import Simulation
from genfl_mpi.analysis.pricing import in_worlds, read
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.config.world import World
from genfl_mpi.federation import workload
from genfl_mpi.federation.client_images import cap_images, missing_images
from genfl_mpi.learning.training import normalise
from genfl_mpi.results import reader

QUICK = [*TINY, "data.name=synthetic", "data.size=8", "data.samples=400", "rounds=3"]
HELD = np.array([[40, 10, 0, 0], [7, 7, 7, 7], [0, 5, 0, 1]])


@pytest.fixture
def quick(tmp_path, bank):
    return [*QUICK, f"output={tmp_path}/results", f"generation.bank={bank}"]


def emd(held):
    """To an even mix."""
    return np.abs(held / held.sum(1, keepdims=True) - 1 / held.shape[1]).sum(1)


def config(*overrides):
    return single(None, ["method=filled", "generation.cap=100000", *overrides])


def test_rare_labels_are_filled_to_an_even_mix_or_a_share_of_it():
    wanted = missing_images(HELD, config())
    assert wanted.tolist() == [[0, 30, 40, 40], [0, 0, 0, 0], [5, 0, 5, 4]]
    assert not emd(HELD + wanted).any()
    many = 1000 * HELD  # so that rounding does not count
    for share in (0.0, 0.25, 0.6, 0.9):
        filled = missing_images(many, config(f"client_generation.share={share}"))
        assert emd(many + filled) == pytest.approx((1 - share) * emd(HELD), abs=1e-3)
        assert not filled[HELD.max(1, keepdims=True) == HELD].any(), "the most frequent label is filled"


def test_clients_fill_missing_labels_alone_if_asked_to():
    assert missing_images(HELD, config("client_generation.labels=missing")).tolist() == [
        [0, 0, 40, 40],
        [0, 0, 0, 0],
        [5, 0, 5, 0],
    ]
    assert missing_images(
        HELD, config("client_generation.labels=missing", "client_generation.share=0.5")
    ).tolist()[0] == [0, 0, 20, 20]


def test_the_cap_is_of_a_label_or_of_all():
    assert cap_images(missing_images(HELD, config()), config("generation.cap=3")).tolist() == [
        [0, 3, 3, 3],
        [0, 0, 0, 0],
        [3, 0, 3, 3],
    ]
    total = cap_images(missing_images(HELD, config()), config("generation.cap=11", "generation.count=total"))
    assert total.tolist() == [[0, 3, 4, 4], [0, 0, 0, 0], [3, 0, 3, 3]]


@pytest.mark.parametrize("algorithm", ["fedavg", "fednova"])
def test_nothing_to_send_or_to_fill_is_federated_learning_alone(quick, algorithm):
    def losses(method, *more, **policies):
        simulation = Simulation(
            overrides=[*quick, f"method={method}", f"algorithm.name={algorithm}", *more], **policies
        )
        records = list(simulation)
        return [record.loss for record in records], simulation.weights.numpy().tobytes()

    alone = losses("fedavg")
    assert losses("filled", "client_generation.share=0") == alone
    assert losses("sent", plan=lambda state: np.zeros(10, dtype=int)) == alone
    assert losses("filled") != alone and losses("sent") != alone


@pytest.mark.parametrize("method", [pytest.param("sent", marks=pytest.mark.slow), "filled"])
def test_any_number_of_ranks_and_a_kill_in_between(method, bank, tmp_path):
    run = [
        *QUICK,
        f"method={method}",
        f"generation.bank={bank}",
        "generation.cap=5",
        "selection.policy=power_of_choice",
    ]
    cut = tmp_path / f"cut/{method}_seed1.h5"
    job = Job(2, [*run, "rounds=5000", f"output={tmp_path}/cut"], cut, tmp_path / "log")
    job.after_round(2)
    os.kill(job.rank(0)["pid"], signal.SIGKILL)
    assert job.end() != 0
    with reader.open_results(cut) as file:
        rounds = len(file["rounds/round"])
    assert main([*run, f"rounds={rounds + 2}", f"output={tmp_path}/cut"]) == 0
    assert (
        mpirun(3, "-m", "genfl_mpi", *run, f"rounds={rounds + 2}", f"output={tmp_path}/whole").returncode == 0
    )
    assert main([*run, f"rounds={rounds + 2}", f"output={tmp_path}/alone"]) == 0
    assert (
        len(
            {reader.digests(tmp_path / f"{folder}/{method}_seed1.h5") for folder in ("cut", "whole", "alone")}
        )
        == 1
    )


def test_filled_clients_see_an_even_mix(quick):
    columns = {}
    for method in ("fedavg", "filled"):
        simulation = Simulation(overrides=[*quick, f"method={method}", "generation.cap=60", "rounds=1"])
        (record,) = simulation
        columns[method] = record.columns
        cohort = record.clients["client"]
        held = simulation.parts.client_images.real(cohort) + simulation.parts.client_images.generated(cohort)
        assert held.sum(1).tolist() == record.clients["samples"].tolist()
        if method == "filled":
            whole = (
                missing_images(simulation.parts.client_images.real(cohort), simulation.config).max(1) <= 60
            )
            assert whole.any() and not emd(held[whole]).any()
            assert record.clients["rho"] == pytest.approx(held.sum(1) / held.sum())
    assert columns["filled"]["clients_emd"] < 0.5 * columns["fedavg"]["clients_emd"]


def test_clients_train_on_their_own_images_and_labels(quick):
    simulation = Simulation(overrides=[*quick, "method=sent", "rounds=1"])
    (record,) = simulation
    made = np.concatenate([images for _, _, images, _ in record.generated])
    labels = np.concatenate([batch.label for _, batch, _, _ in record.generated])
    client = int(record.clients["client"][0])
    own = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)

    def normalised(images):
        return normalise(torch.from_numpy(images), simulation.about.mean, simulation.about.std, own[0].device)

    images, with_labels = simulation.parts.client_images.append_images(client, *own)
    assert torch.equal(images[2:], normalised(made)) and with_labels[2:].tolist() == labels.tolist()
    simulation = Simulation(overrides=[*quick, "method=filled", "rounds=1"])
    (record,) = simulation
    images, with_labels = simulation.parts.client_images.append_images(client, *own)
    wanted = cap_images(
        missing_images(simulation.parts.client_images.real(np.array([client])), simulation.config),
        simulation.config,
    )[0]
    assert np.bincount(with_labels[2:], minlength=10).tolist() == wanted.tolist()
    made = np.concatenate([images for _, _, images, _ in record.generated])
    labels = np.concatenate([batch.label for _, batch, _, _ in record.generated])
    for label in range(10):
        assert torch.equal(
            images[2:][with_labels[2:] == label], normalised(made[labels == label][: wanted[label]])
        )


def test_a_run_is_priced_by_where_its_images_were(quick, tmp_path):
    assert main([*quick[1:], "sweep.method=[fedavg,genfl,sent,filled]"]) == 0
    bills = {}
    for method in ("fedavg", "genfl", "sent", "filled"):
        run = read(tmp_path / f"results/{method}_seed1.h5")
        bills[method] = (one,) = in_worlds([run], [{"default": World()}])
        bills[method] = one.bill
    weights, images = bills["fedavg"].bytes["down"], 3 * 8 * 8  # of three channels of a byte
    with reader.open_results(tmp_path / "results/sent_seed1.h5") as file:
        newest = file["rounds/images"][:]
        clients, rounds = file["clients/client"][:], file["clients/round"][:]
    has, expected = dict.fromkeys(clients.tolist(), 0), []
    for round, there in enumerate(newest, 1):
        cohort = clients[rounds == round].tolist()
        expected.append(
            max(there - has[client] for client in cohort) * images
        )  # a broadcast lasts as long as the longest
        has |= dict.fromkeys(cohort, there)
    assert (bills["sent"].bytes["down"] - weights).tolist() == pytest.approx(expected)
    assert not sum(price.client_joules["make"].sum() for price in bills["sent"].prices)
    making = [price.client_joules["make"] for price in bills["filled"].prices]
    with reader.open_results(tmp_path / "results/filled_seed1.h5") as file:
        counts, clients, rounds = (file[f"clients/{name}"][:] for name in ("images", "client", "round"))
    first = np.array([client not in clients[:row] for row, client in enumerate(clients)])
    assert counts.all() and [joules > 0 for joules in np.concatenate(making)] == first.tolist()
    per_image = np.concatenate(making)[first] / counts[first]
    assert per_image == pytest.approx(per_image[0])
    assert (
        bills["filled"].joules["clients"].sum()
        > bills["sent"].joules["clients"].sum()
        > bills["fedavg"].joules["clients"].sum()
    )
    assert bills["genfl"].joules["clients"].sum() == pytest.approx(bills["fedavg"].joules["clients"].sum())
    assert (
        main(
            [
                "price",
                str(tmp_path / "results/sent_seed1.h5"),
                "--placements",
                "-o",
                str(tmp_path / "price.png"),
            ]
        )
        == 0
    )


BAD = {
    "a filter of clients' images": (
        "method=filled generation.min_fidelity=0.5 data.public_pool=100",
        "generation.min_fidelity filters images at the server",
    ),
    "validation on clients' images": (
        "method=filled validation.source=generated",
        "needs generated images at the server, and method=filled has none",
    ),
    "a share": ("method=filled client_generation.share=2", "client_generation.share"),
    "labels": ("method=filled client_generation.labels=all", "client_generation.labels"),
}


@pytest.mark.parametrize(("overrides", "message"), BAD.values(), ids=BAD)
def test_wrong_settings_of_images_at_clients_are_refused(overrides, message, capsys, tmp_path):
    assert main([*FAST[1:], *overrides.split(), f"output={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_shared_images_are_a_clients_own(quick, tmp_path):
    """The run, its price and `incentive` agree: no client lacks a label of the shared samples."""
    shared = ["data.public_pool=100", "data.shared=27"]
    assert (
        main(
            [
                *quick,
                *shared,
                "method=filled",
                "client_generation.labels=missing",
                "rounds=1",
                f"output={tmp_path}/runs",
            ]
        )
        == 0
    )
    path = tmp_path / "runs/filled_seed1.h5"
    with reader.open_results(path) as file:
        histograms, samples, images = (
            file["partition/label_histograms"][:],
            file["clients/samples"][:],
            file["clients/images"][:],
        )
        cohort = file["clients/client"][:]
    assert (histograms == 0).any() and not images.any()
    assert samples.tolist() == (histograms.sum(1) + 27)[cohort].tolist()
    config = single(None, [*quick, *shared])
    with reader.open_results(path) as file:
        own = workload.count_held_labels(file, config)
        assert not workload.read_trace(file, config)[0].missing.any()
    simulation = Simulation(overrides=[*quick, *shared])
    assert np.array_equal(own, simulation.parts.client_images.real())
    given = np.bincount(simulation.data["train_labels"][simulation.data["common_samples"]], minlength=10)
    assert (
        np.array_equal(own - histograms, np.tile(given, (len(own), 1)))
        and given.tolist() == [3] * 7 + [2] * 3
    )


def test_a_composition_without_a_name(fast, tmp_path):
    """The public pool, sent to the clients: no method is called so."""
    run = [
        *fast,
        "method=genfl",
        "composition.images=sent_to_clients",
        "composition.source=pool",
        "data.public_pool=100",
        "rounds=2",
    ]
    assert mpirun(2, "-m", "genfl_mpi", *run, f"output={tmp_path}/two").returncode == 0
    assert main(run) == 0
    path = tmp_path / "results/genfl_seed1.h5"
    assert reader.digests(path) == reader.digests(tmp_path / "two/genfl_seed1.h5")
    with reader.open_results(path) as file:
        assert (file["clients/images"][:] == 100).all() and not len(file["generated/number"])


@pytest.mark.parametrize(
    ("composition", "said"),
    [
        (["images=sent_to_clients", "local_training=false"], "trains no model"),
        (["images=made_by_clients", "source=pool"], "the clients generate them"),
        (["matched_steps=true"], "a control without images"),
        (["images=elsewhere"], "composition.images= needs one of "),
    ],
)
def test_a_composition_that_is_none_is_refused_in_one_line(composition, said, fast, capsys):
    assert main([*fast, "method=genfl", *(f"composition.{part}" for part in composition)]) == 2
    assert said in (line := capsys.readouterr().err) and line.count("\n") == 1
