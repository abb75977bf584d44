"""Flat weights, the exact sum, local SGD."""

import numpy as np
import pytest
import torch

from genfl_mpi.learning import models
from genfl_mpi.learning.training import batches, sgd, train
from genfl_mpi.learning.weights import LIMIT, ExactSum, FlatModel
from genfl_mpi.settings import Model, Training

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("settings", [Model(name="cnn"), Model(name="resnet18"), Model(name="resnet18", stem="cifar")])
def test_flat_weights_are_the_modules_own(settings):
    model = FlatModel(models.build(settings, 10, (3, 32, 32), seed=1))
    state = {name: value for name, value in model.module.state_dict().items() if value.is_floating_point()}
    assert sum(value.numel() for value in state.values()) == len(model.weights)
    model.weights.fill_(2)
    assert all((value == 2).all() for value in state.values())
    model.module.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    assert model.gradient.abs().sum() > 0
    if settings.name == "resnet18":
        assert (model.weights[model.parameters :] != 2).any(), "BatchNorm should have updated its statistics in place"


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    one, two, other = (FlatModel(models.build(Model(), 10, (1, 28, 28), seed)).weights for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_sum_is_exact_in_any_order_and_division():
    weights = torch.randn(7, 1000)
    rho = RNG.dirichlet(np.ones(7))

    def total(order):
        units = np.zeros(1000, dtype=np.int64)
        for n in order:
            ExactSum(units).add(rho[n], weights[n])
        return units

    forward = total(range(7))
    assert np.array_equal(forward, total([3, 1, 6, 0, 5, 2, 4]))
    assert np.array_equal(forward, total([0, 1, 2]) + total([3, 4, 5, 6]))
    expected = (torch.tensor(rho)[:, None] * weights.double()).sum(0)
    assert torch.allclose(ExactSum(forward).value(), expected, rtol=0, atol=7 * 2.0**-41)


def test_one_client_of_weight_one_comes_back_as_it_was():
    weights = torch.randn(1000)
    units = np.zeros(1000, dtype=np.int64)
    total = ExactSum(units)
    total.add(1.0, weights)
    assert torch.allclose(total.value().float(), weights, rtol=0, atol=2.0**-41)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), LIMIT])
def test_what_the_sum_cannot_hold_is_refused(bad):
    with pytest.raises(ArithmeticError):
        ExactSum(np.zeros(3, dtype=np.int64)).add(0.1, torch.tensor([0.0, bad, 1.0]))


def test_the_largest_weights_do_not_overflow():
    units = np.zeros(1, dtype=np.int64)
    for _ in range(1000):
        ExactSum(units).add(1 / 1000, torch.tensor([LIMIT - 1]))
    assert ExactSum(units).value().item() == pytest.approx(LIMIT - 1)


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4, 2]), (9, [4, 5]), (1, [1]), (3, [3])])
def test_batches_cover_the_data_and_never_end_with_one(count, sizes):
    chunks = batches(count, 4, RNG)
    assert [len(chunk) for chunk in chunks] == sizes
    assert sorted(torch.cat(chunks).tolist()) == list(range(count))


@pytest.mark.parametrize("settings", [Training(), Training(momentum=0.9), Training(momentum=0.9, weight_decay=0.01)])
def test_sgd_is_torchs(settings):
    ours = torch.randn(50)
    theirs = ours.clone().requires_grad_()
    gradient = torch.empty(50)
    step = sgd(ours, gradient, settings)
    reference = torch.optim.SGD([theirs], settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    for _ in range(4):
        gradient.copy_(torch.randn(50))
        theirs.grad = gradient.clone()
        step()
        reference.step()
    assert torch.allclose(ours, theirs)


def test_training_learns():
    model = FlatModel(models.build(Model(), 10, (1, 28, 28), seed=1))
    images, labels = torch.randn(60, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10
    report = train(model, model.weights.clone(), images, labels, Training(epochs=60, batch_size=20, lr=0.1), np.random.default_rng(0))
    assert report.samples == 60
    assert report.loss_last_epoch < 0.2 * report.loss_first_epoch
