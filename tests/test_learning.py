"""Flat weights, the exact sum, models, local SGD and evaluation."""

import numpy as np
import pytest
import torch
from torch import nn

from genfl_mpi.cli import main
from genfl_mpi.config.sections.local_training import LocalTraining, Model, Training
from genfl_mpi.learning import models
from genfl_mpi.learning.batched_clients import BatchedModel
from genfl_mpi.learning.batches import augment, batches, draw
from genfl_mpi.learning.evaluation import accuracy_over_clients, summarise
from genfl_mpi.learning.steps import descend
from genfl_mpi.learning.training import settings_at_round, train
from genfl_mpi.learning.weights import BLOCK, LIMIT, ExactSum, FlatModel
from genfl_mpi.util.errors import UserError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "settings", [Model(name="cnn"), Model(name="resnet18"), Model(name="resnet18", stem="cifar")]
)
def test_parameters_and_buffers_are_views_of_the_flat_weights(settings):
    model = FlatModel(models.build(settings, 10, (3, 32, 32), seed=1))
    state = {name: value for name, value in model.module.state_dict().items() if value.is_floating_point()}
    assert sum(value.numel() for value in state.values()) == len(model.weights)
    model.weights.fill_(2)
    assert all((value == 2).all() for value in state.values())
    model.module.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    assert model.gradient().abs().sum() > 0 and not model.gradient().any()
    if settings.name == "resnet18":
        assert (model.weights[model.parameters :] != 2).any(), (
            "BatchNorm should have updated its statistics in place"
        )


def test_initial_weights_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    one, two, other = (FlatModel(models.build(Model(), 10, (1, 28, 28), seed)).weights for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_exact_sum_does_not_depend_on_order_or_division():
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


def test_the_sum_of_one_client_with_rho_1_is_its_model():
    weights = torch.randn(1000)
    units = np.zeros(1000, dtype=np.int64)
    total = ExactSum(units)
    total.add(1.0, weights)
    assert torch.allclose(total.value().float(), weights, rtol=0, atol=2.0**-41)


@pytest.mark.parametrize("place", [0, BLOCK, 2 * BLOCK + 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), LIMIT, -LIMIT])
def test_the_sum_refuses_weights_that_it_cannot_hold(bad, place):
    weights, units = torch.ones(2 * BLOCK + 5), np.zeros(2 * BLOCK + 5, dtype=np.int64)
    weights[place] = bad
    with pytest.raises(ArithmeticError):
        ExactSum(units).add(0.1, weights)
    assert not units.any(), "a refused summand must not be added"


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, 3 * BLOCK - 1])
def test_the_blockwise_sum_equals_the_definition(size):
    """Each summand is round(rho 2^40 w) in float64; `add` returns the largest weight and the update norm."""
    weights, since = torch.randn(size), torch.randn(max(1, size - 7))
    weights[size // 2] = -50
    units = np.full(size, 3, dtype=np.int64)
    largest, distance = ExactSum(units).add(0.3, weights, since)
    assert np.array_equal(units - 3, np.rint(weights.double().numpy() * (0.3 * 2.0**40)).astype(np.int64))
    assert largest == 50
    assert distance == pytest.approx(
        (weights[: len(since)].double() - since.double()).norm().item(), rel=1e-12
    )


def test_the_largest_weights_do_not_overflow():
    units = np.zeros(1, dtype=np.int64)
    for _ in range(1000):
        ExactSum(units).add(1 / 1000, torch.tensor([LIMIT - 1]))
    assert ExactSum(units).value().item() == pytest.approx(LIMIT - 1)


@pytest.mark.parametrize(
    ("count", "sizes"), [(10, [4, 3, 3]), (9, [3, 3, 3]), (8, [4, 4]), (1, [1]), (3, [3])]
)
def test_batches_cover_the_data_and_have_equal_sizes(count, sizes):
    chunks = batches(count, 4, RNG)
    assert [len(chunk) for chunk in chunks] == sizes
    assert sorted(torch.cat(chunks).tolist()) == list(range(count))


@pytest.mark.parametrize(
    "settings", [Training(), Training(momentum=0.9), Training(momentum=0.9, weight_decay=0.01)]
)
def test_sgd_equals_torch_optim_sgd(settings):
    ours, velocity = torch.randn(50), torch.zeros(50)
    theirs = ours.clone().requires_grad_()
    reference = torch.optim.SGD([theirs], settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    for _ in range(4):
        theirs.grad = torch.randn(50)
        descend([ours], [theirs.grad.clone()], settings, settings.lr, [velocity])
        reference.step()
    assert torch.allclose(ours, theirs)


def test_training_reduces_the_loss():
    model = FlatModel(models.build(Model(), 10, (1, 28, 28), seed=1))
    images, labels = (
        torch.randn(60, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        torch.arange(60) % 10,
    )
    report = train(
        model,
        model.weights.clone(),
        images,
        labels,
        Training(epochs=60, batch_size=20, lr=0.1),
        np.random.default_rng(0),
    )
    assert report.samples == 60
    assert report.loss_last_epoch < 0.2 * report.loss_first_epoch


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("pfl_cnn", (3, 32, 32), 1626442),
        ("lenet5", (1, 28, 28), 61706),
        ("lenet5", (3, 32, 32), 62006),
        ("resnet18", (3, 32, 32), 11181642),
    ],
)
def test_models_have_the_published_number_of_parameters(name, shape, parameters):
    """LeNet-5: 61,706 with one channel. ResNet-18: torchvision's 11,689,512 with 10 of 1,000 classes."""
    module = models.build(Model(name=name), 10, shape, seed=1)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert module(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "fits"),
    [("cnn", range(4, 65)), ("pfl_cnn", range(6, 65)), ("lenet5", range(1, 33)), ("resnet18", range(1, 65))],
)
def test_models_are_tried_on_images_of_every_size(name, fits):
    """Sizes that pass the check can be trained; others are refused in one line.

    ResNet-18 is slow and checked on a few sizes only.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for size in range(1, 65) if name != "resnet18" else (1, 2, 3, 32, 33, 64):
        try:
            models.check(Model(name=name), 10, (1, size, size))
        except UserError as error:
            assert size not in fits and "\n" not in str(error)
            assert str(error).startswith(
                f"model.name: {name} cannot be trained on images of 1 x {size} x {size} "
                "(channels, height, width): "
            )
            assert str(error).endswith(
                "; use images of another size (data.size for folder and synthetic, or model.input_size), or "
                "choose another model"
            )
        else:
            assert size in fits
    torch.set_num_threads(threads)


def test_lenet5_pads_images_of_odd_size():
    model = FlatModel(models.build(Model(name="lenet5"), 10, (1, 27, 30), seed=1))
    images, labels = (
        torch.randn(60, 1, 27, 30, generator=torch.Generator().manual_seed(0)),
        torch.arange(60) % 10,
    )
    train(
        model,
        model.weights.clone(),
        images,
        labels,
        Training(epochs=1, batch_size=20),
        np.random.default_rng(0),
    )
    assert model.parameters == 61706


@pytest.mark.parametrize(
    "override", ["data.size=3", "model.name=pfl_cnn", "model.name=lenet5", "training.batch_size=1"]
)
def test_a_model_that_does_not_fit_is_refused_before_the_start(override, fast, tmp_path, capsys):
    sizes = {
        "model.name=pfl_cnn": "data.size=5",
        "model.name=lenet5": "data.size=33",
        "training.batch_size=1": "model.name=test_learning:batch_norm",
    }
    assert main([*fast, override, *filter(None, [sizes.get(override)])]) == 2
    said = capsys.readouterr().err
    assert "cannot be trained on images of 3 x" in said and said.count("\n") == 1
    assert ("in batches of one" in said) == (override == "training.batch_size=1") and not list(
        tmp_path.glob("results/*.h5")
    )


def batch_norm(classes, shape):
    return torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.BatchNorm2d(3),
        torch.nn.Flatten(),
        torch.nn.Linear(3, classes),
    )


def test_a_batch_of_a_single_generated_image_is_said(fast, capsys):
    run = [
        *fast,
        "method=pool",
        "data.public_pool=11",
        "augmented.batch_size=1",
        "model.name=test_learning:batch_norm",
    ]
    assert main(run) == 2
    assert (
        "the model cannot be trained on a batch of one sample" in (said := capsys.readouterr().err)
        and said.count("\n") == 1
    )


def test_group_norm_has_no_running_statistics():
    model = FlatModel(
        models.build(Model(name="resnet18", norm="group", stem="cifar"), 10, (3, 32, 32), seed=1)
    )
    assert model.parameters == len(model.weights)
    assert model.module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def linear(classes, shape):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes))


def test_a_model_can_be_named_by_import_path():
    module = models.build(Model(name="test_learning:linear"), 7, (1, 4, 4), seed=1)
    assert module(torch.zeros(2, 1, 4, 4)).shape == (2, 7)
    with pytest.raises(
        UserError, match="model.name: test_learning:not_a_model must return a torch.nn.Module, not int"
    ):
        models.build(Model(name="test_learning:not_a_model"), 7, (1, 4, 4), seed=1)


def not_a_model(classes, shape):
    return classes


def test_dropout_depends_on_its_key_alone_and_restores_the_global_stream():
    images, labels = (
        torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.arange(32) % 10,
    )

    def trained(key, disturb):
        model = FlatModel(models.build(Model(name="pfl_cnn"), 10, (3, 32, 32), seed=1))
        torch.manual_seed(disturb)
        before = torch.random.get_rng_state()
        train(
            model,
            model.weights.clone(),
            images,
            labels,
            Training(epochs=1, batch_size=16),
            np.random.default_rng(key),
        )
        assert torch.equal(torch.random.get_rng_state(), before)
        return model.weights

    assert torch.equal(trained(1, disturb=1), trained(1, disturb=2))
    assert not torch.equal(trained(1, disturb=1), trained(2, disturb=1))


def test_augmentation_shifts_and_mirrors():
    images = torch.arange(2 * 3 * 6 * 5, dtype=torch.float32).view(2, 3, 6, 5).repeat(200, 1, 1, 1)

    def augmented(**settings):
        settings = Training(batch_size=400, epochs=1, **settings)
        moves = draw(400, settings, np.random.default_rng(0)).moves
        return augment(images, settings, None if moves is None else torch.from_numpy(moves))

    assert augmented() is images
    mirrored = (augmented(flip=True) == images.flip(3)).flatten(1).all(1)
    kept = (augmented(flip=True) == images).flatten(1).all(1)
    assert 120 < mirrored.sum() < 280 and torch.equal(kept, ~mirrored)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
    seen = set()
    for before, after in zip(padded, augmented(crop=2)):
        [place] = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(before[:, y : y + 6, x : x + 5], after)
        ]
        seen.add(place)
    assert len(seen) == 25


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1]),
        ("exponential", [1, 0.5, 0.25, 0.125]),
        ("step", [1, 1, 0.5, 0.5]),
        ("cosine", [1, 0.5, 0.5, 0.5]),
    ],
)
def test_learning_rate_schedules_match_hand_computed_values(schedule, rates):
    settings = Training(lr=1, schedule=schedule, decay=0.5, period=2)
    assert [settings_at_round(settings, round).lr for round in range(4)] == pytest.approx(rates)


def test_accuracy_over_clients_matches_hand_computed_values():
    """Of twenty clients two hold class 0 alone, with accuracy 0.5; the others hold both classes evenly."""
    histograms = np.array([[4, 0]] * 2 + [[3, 3]] * 18)
    seen = accuracy_over_clients(np.array([0.5, 0.9]), histograms)
    assert seen == pytest.approx(
        {"clients_accuracy": (2 * 0.5 + 18 * 0.7) / 20, "clients_accuracy_worst_tenth": 0.5}
    )


def test_a_class_without_test_samples_has_no_accuracy():
    _, _, accuracy = summarise(np.array([3, 0, 8, 0]), np.array([4, 0, 10]))
    assert accuracy == pytest.approx([0.75, np.nan, 0.8], nan_ok=True)
    seen = accuracy_over_clients(accuracy, np.array([[1, 5, 0], [0, 2, 0], [1, 0, 3]]))
    assert seen["clients_accuracy"] == pytest.approx(np.mean([0.75, (0.75 + 3 * 0.8) / 4]))


@pytest.mark.parametrize("together", [False, True])
def test_frozen_parameters_do_not_change_and_are_no_weights(together):
    """Weight decay must not change them, either."""

    def network():
        layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))
        layers[1].requires_grad_(False)
        return layers

    torch.manual_seed(0)
    model = FlatModel(network(), torch.device("cpu"))
    start, frozen = model.weights.clone(), model.frozen_digest()
    assert len(start) == 6 * 3 + 3
    data = torch.randn(20, 3, 2, 2), torch.arange(20) % 3
    settings = LocalTraining(
        lr=0.1, momentum=0.9, weight_decay=0.1, batch_size=5, epochs=3, clients_per_batch=2
    )
    if together:
        [[weights, _], _] = BatchedModel(model, (3, 2, 2), settings).train(
            start, [data] * 2, [settings] * 2, [np.random.default_rng(1) for _ in range(2)]
        )
    else:
        train(model, start, *data, settings, np.random.default_rng(1))
        weights = model.weights
    assert model.frozen_digest() == frozen and not torch.isclose(weights, start).any()


def test_a_report_counts_the_last_epoch():
    labels = torch.arange(60) % 2
    images = (
        torch.randn(60, 1, 28, 28, generator=torch.Generator().manual_seed(0)) + labels[:, None, None, None]
    )
    model = FlatModel(models.build(Model(), 10, (1, 28, 28), seed=1))
    report = train(
        model,
        model.weights.clone(),
        images,
        labels,
        Training(epochs=5, lr=0.05, batch_size=10),
        np.random.default_rng(0),
    )
    assert (
        report.samples == 60
        and report.accuracy_last_epoch > 0.9
        and report.loss_last_epoch < report.loss_first_epoch
    )
