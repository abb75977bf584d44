"""Clients trained as one batched computation match single clients up to rounding, on any number of ranks."""

import numpy as np
import pytest
import torch
from conftest import mpirun
from torch import nn
from torch.testing import assert_close

from genfl_mpi import Simulation
from genfl_mpi.cli import main
from genfl_mpi.config.loading import single
from genfl_mpi.config.sections.local_training import LocalTraining, Model
from genfl_mpi.learning import models
from genfl_mpi.learning.batched_clients import BatchedModel
from genfl_mpi.learning.training import train
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.mpi.schedule import assign
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError

TOLERANCE = 1e-6  # of weights, after a few steps in float32, as stated in docs/scale.md
SAMPLES, EPOCHS = (9, 20, 7, 33), (2, 1, 2, 2)


def flat(name):
    return FlatModel(models.build(Model(name=name), 10, (3, 32, 32), seed=1))


def group_norm(classes, shape):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, bias=False),
        nn.GroupNorm(4, 8),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def both(name, mu=0.0, tolerance=TOLERANCE, **settings):
    """Train four clients batched and one by one; compare weights, losses (up to `tolerance`) and accuracy."""
    settings = LocalTraining(batch_size=8, clients_per_batch=4, **settings)
    model, random = flat(name), torch.Generator().manual_seed(0)
    start = model.weights.clone()
    each = [settings.model_copy(update={"epochs": epochs}) for epochs in EPOCHS]
    data = [
        (
            torch.randn(count, 3, 32, 32, generator=random).contiguous(memory_format=torch.channels_last),
            torch.arange(count) % 10,
        )
        for count in SAMPLES
    ]
    found = BatchedModel(model, (3, 32, 32), settings).train(
        start, data, each, [np.random.default_rng(key) for key in range(4)], mu
    )
    for key, (weights, report) in enumerate(found):
        expected = train(model, start, *data[key], each[key], np.random.default_rng(key), mu)
        assert (model.weights - start).abs().max() > 100 * tolerance, (
            "training must change the weights far more than the tolerance"
        )
        assert_close(weights, model.weights, rtol=0, atol=tolerance)
        assert report.samples == expected.samples and report.accuracy_last_epoch == pytest.approx(
            expected.accuracy_last_epoch
        )
        assert report.loss_first_epoch == pytest.approx(expected.loss_first_epoch, rel=10 * tolerance)
        assert report.loss_last_epoch == pytest.approx(expected.loss_last_epoch, rel=10 * tolerance)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("pfl_cnn", {"momentum": 0.9, "weight_decay": 1e-3, "crop": 2, "flip": True}),
        ("cnn", {"mu": 0.1}),
        ("lenet5", {"flip": True}),
        ("test_together:group_norm", {}),
    ],
)
def test_batched_clients_match_single_clients(name, more):
    both(name, **more)


def test_in_bfloat16_batched_clients_match_up_to_rounding():
    """Dropout masks are the same, too: otherwise the difference would be as large as the update."""
    model = flat("pfl_cnn")
    settings = LocalTraining(batch_size=8, clients_per_batch=2, epochs=1, dtype="bfloat16", lr=0.05)
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    start, labels = model.weights.clone(), torch.arange(16) % 10
    [(weights, _), _] = BatchedModel(model, (3, 32, 32), settings).train(
        start, [(images, labels)] * 2, [settings] * 2, [np.random.default_rng(key) for key in range(2)]
    )
    train(model, start, images, labels, settings, np.random.default_rng(0))
    assert (weights - model.weights).norm() < 0.05 * (model.weights - start).norm()


def test_the_global_stream_is_restored_and_earlier_evaluation_has_no_effect():
    model, settings = flat("pfl_cnn"), LocalTraining(batch_size=8, clients_per_batch=2, epochs=1)
    twin, found = BatchedModel(model, (3, 32, 32), settings), []
    data = [(torch.ones(9, 3, 32, 32), torch.arange(9))] * 2
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model.module.eval()
        found.append(
            twin.train(model.weights, data, [settings] * 2, [np.random.default_rng(key) for key in range(2)])
        )
        assert torch.equal(torch.get_rng_state(), before)
    for (one, _), (other, _) in zip(*found):
        assert torch.equal(one, other)
    assert not torch.equal(found[0][0][0], found[0][1][0]), "each client must have its own draws"


class Mixing(nn.Module):
    def forward(self, images):
        return images - images.mean(0)


class Branching(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.dropout(images))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.BatchNorm2d(3), "BatchNorm's statistics belong to one client's batch"),
        (nn.Dropout2d(), "only the draws of Dropout can be kept separate"),
        (Mixing(), "depends on the other samples of the batch"),
        (Twice(), "uses the layer more than once"),
        (Branching(), "torch.func.vmap fails on it: "),
    ],
)
def test_networks_that_cannot_be_batched_are_refused_in_one_line(layer, said):
    model = FlatModel(nn.Sequential(layer, nn.Flatten(), nn.Linear(192, 10)))
    with pytest.raises(
        UserError, match="training.clients_per_batch=3 does not support this network"
    ) as caught:
        BatchedModel(model, (3, 8, 8), LocalTraining(clients_per_batch=3))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_clients_per_batch_is_checked_against_other_settings(fast, capsys):
    config = single(None, ["method=genfl", "training.clients_per_batch=4", "training.lr=0.3"])
    assert (
        config.training.clients_per_batch == 4
        and config.augmented.lr == 0.3
        and not hasattr(config.augmented, "clients_per_batch")
    )
    assert main([*fast, "training.clients_per_batch=2", "algorithm.name=scaffold"]) == 2
    assert "algorithm.name=scaffold cannot train several clients as one batch" in capsys.readouterr().err
    assert main([*fast, "training.clients_per_batch=2", "model.name=resnet18"]) == 2
    said = capsys.readouterr().err
    assert (
        "one client's batch; set training.clients_per_batch=1 or model.norm=group" in said
        and said.count("\n") == 1
    )


def test_a_group_goes_to_one_rank():
    assert assign(np.array([1.0, 1, 5, 1, 2]), np.ones(2), 0.0, clients_per_batch=2).tolist() == [
        1,
        1,
        0,
        0,
        1,
    ]
    assert assign(np.array([1.0, 3, 2]), np.ones(2), 0.0, clients_per_batch=9).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "more",
    [
        ["algorithm.name=fedprox", "rho.policy=loss"],
        pytest.param(["model.name=pfl_cnn", "data.size=16", "training.momentum=0.5"], marks=pytest.mark.slow),
    ],
)
def test_the_same_bits_on_any_number_of_ranks(more, fast, tmp_path):
    overrides = [
        *fast,
        "cohort=5",
        "training.clients_per_batch=2",
        "training.batch_size=8",
        "rounds=2",
        *more,
    ]
    for ranks in (1, 2, 3):
        done = mpirun(ranks, "-m", "genfl_mpi", *overrides, f"output={tmp_path}/{ranks}")
        assert done.returncode == 0, done.stderr
    first = reader.digests(tmp_path / "1/fedavg_seed1.h5")
    assert [reader.digests(tmp_path / f"{ranks}/fedavg_seed1.h5") for ranks in (2, 3)] == [first, first]
    main([*overrides, "training.clients_per_batch=1", f"output={tmp_path}/alone"])
    with (
        reader.open_results(tmp_path / "1/fedavg_seed1.h5") as one,
        reader.open_results(tmp_path / "alone/fedavg_seed1.h5") as other,
    ):
        assert_close(one["weights"][:], other["weights"][:], rtol=0, atol=TOLERANCE)
        for column in ("client", "samples", "accuracy_last_epoch"):
            assert np.array_equal(one[f"clients/{column}"], other[f"clients/{column}"])
        for column in ("loss_first_epoch", "loss_last_epoch", "update_norm"):
            assert one[f"clients/{column}"][:] == pytest.approx(other[f"clients/{column}"][:], rel=1e-4)


def test_the_time_of_a_batch_is_divided_by_samples(fast):
    [record] = Simulation(overrides=[*fast, "cohort=4", "training.clients_per_batch=4", "rounds=1"])
    clients = record.clients
    rate = clients["samples"] / clients["seconds"]
    assert (clients["seconds"] > 0).all() and rate == pytest.approx(np.full(4, rate[0]))
    assert clients["start_seconds"][1:] == pytest.approx((clients["start_seconds"] + clients["seconds"])[:-1])
    assert clients["seconds"].sum() <= record.columns["train_seconds"]


def test_a_client_that_diverges_is_named_or_dropped_alone(fast, monkeypatch, capsys):
    train_all = BatchedModel.train

    def poison(self, *arguments):
        found = train_all(self, *arguments)
        found[1][0][7] = float("nan")
        return found

    monkeypatch.setattr(BatchedModel, "train", poison)
    together = [*fast, "cohort=4", "training.clients_per_batch=4", "rounds=1"]
    [record] = Simulation(overrides=[*together, "faults.nonfinite=drop"])
    assert np.isnan(record.clients["update_norm"]).tolist() == [False, True, False, False]
    assert main([*together]) == 1
    assert (
        f"client {record.clients['client'][1]}: FloatingPointError: the trained weights are not finite"
        in capsys.readouterr().err
    )
