"""Training steps over fixed buffers, as a GPU replays them, and without synchronization with the device."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from genfl_mpi.config.sections.local_training import LocalTraining, Model, Training
from genfl_mpi.learning import models
from genfl_mpi.learning.batched_clients import BatchedModel
from genfl_mpi.learning.evaluation import evaluate
from genfl_mpi.learning.steps import Steps, has_batch_statistics, is_static, steps_of
from genfl_mpi.learning.training import train
from genfl_mpi.learning.weights import FlatModel

IMAGES = torch.randn(27, 3, 32, 32, generator=torch.Generator().manual_seed(0)).contiguous(
    memory_format=torch.channels_last
)
LABELS = torch.arange(27) % 10


def as_on_gpu(monkeypatch, fixed=False):
    """Emulate a GPU's steps on a CPU: padded batches, a learning rate in a tensor; fixed: in graphs."""
    initialise = Steps.__init__

    def init(self, model, settings, *more):
        initialise(self, model, settings, *more)
        self.fixed, self.lr = fixed, torch.zeros(())
        self.width = 0 if has_batch_statistics(model.module) else settings.batch_size

    monkeypatch.setattr(Steps, "__init__", init)


def captured(monkeypatch, spoil=lambda results: None):
    """Emulate graph replay on a CPU: call the function again and copy its results to their first addresses.

    Returns a list that grows by one element per replay. spoil: is called with the results of each replay.
    """
    repeated = []

    def capture(self, function):
        results = function()

        def replay():
            for buffer, value in zip(results, function()):
                buffer.copy_(value)
            spoil(results)
            repeated.append(1)

        return replay, results

    as_on_gpu(monkeypatch, fixed=True)
    monkeypatch.setattr(Steps, "_capture", capture)
    return repeated


def trained(name, settings, mu=0.0, corrected=False, times=2):
    """Return reports and weights of consecutive trainings; the later ones reuse the first one's graphs."""
    model = FlatModel(models.build(Model(name=name), 10, (3, 32, 32), seed=1))
    start, found = model.weights.clone(), []
    correction = torch.linspace(-1e-3, 1e-3, model.parameters) if corrected else None
    for key in range(times):
        found += [
            train(model, start, IMAGES, LABELS, settings, np.random.default_rng(key), mu, correction),
            model.weights.clone(),
        ]
    return found


@pytest.mark.parametrize(
    ("name", "settings", "more"),
    [
        ("pfl_cnn", Training(epochs=2, batch_size=8, momentum=0.9, weight_decay=1e-3, crop=2, flip=True), {}),
        ("resnet18", Training(epochs=1, batch_size=14), {"mu": 0.1}),
        ("cnn", Training(epochs=2, batch_size=8, dtype="bfloat16"), {"corrected": True}),
    ],
)
def test_a_replayed_step_equals_the_eager_step(name, settings, more, monkeypatch):
    with monkeypatch.context() as eager:
        as_on_gpu(eager)
        expected = trained(name, settings, **more)
    repeated = captured(monkeypatch)
    found = trained(name, settings, **more)
    count = -(-27 // settings.batch_size)
    assert len(repeated) >= 2 * settings.epochs * count, "every step must be a replay"
    for one, other in zip(expected, found):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def wrong(results):
    results[0].add_(1)


def fails(results):
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(wrong, "differs from the eager step"), (fails, "operation not permitted when stream is capturing$")],
)
def test_a_graph_that_fails_or_differs_is_not_used(spoil, said, monkeypatch):
    settings = Training(epochs=1, batch_size=8, momentum=0.9)
    with monkeypatch.context() as eager:
        as_on_gpu(eager)
        expected = trained("pfl_cnn", settings, times=1)
    captured(monkeypatch, spoil)
    with pytest.warns(UserWarning, match=said):
        found = trained("pfl_cnn", settings, times=1)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])


def test_batches_of_all_sizes_share_a_graph_and_rounds_of_all_learning_rates_too(monkeypatch):
    captured(monkeypatch)
    model = FlatModel(models.build(Model(name="cnn"), 10, (3, 32, 32), seed=1))
    start = model.weights.clone()
    for lr, count in ((0.1, 27), (0.05, 5), (0.01, 17)):
        settings = Training(epochs=1, batch_size=8, lr=lr)
        train(model, start, IMAGES[:count], LABELS[:count], settings, np.random.default_rng(0))
    [(_, steps)] = model.cached_steps
    assert len(steps.graphs) == 1 and steps.fixed


@pytest.mark.parametrize("name", ["cnn", "lenet5"])
def test_a_padded_step_is_the_step_up_to_rounding(name, monkeypatch):
    settings = Training(epochs=2, batch_size=8, momentum=0.9, weight_decay=1e-3, lr=0.01)
    expected = trained(name, settings, mu=0.1, times=1)
    as_on_gpu(monkeypatch)
    found = trained(name, settings, mu=0.1, times=1)
    assert vars(found[0]) == pytest.approx(vars(expected[0]), rel=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-5)


def test_a_step_that_ends_in_nan_keeps_its_graph(monkeypatch):
    captured(monkeypatch)
    model = FlatModel(models.build(Model(name="cnn"), 10, (3, 32, 32), seed=1))
    steps = steps_of(model, Training(epochs=1, batch_size=8))
    steps.begin(torch.full_like(model.weights, torch.nan), lr=0.1)
    loss, _ = steps(IMAGES[:8], LABELS[:8])
    assert loss.isnan() and len(steps.graphs) == 1


class Branching(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :10] if images.sum() > 0 else images.flatten(1)[:, -10:]


def test_only_library_layers_are_static():
    assert all(is_static(models.build(Model(name=name), 10, (3, 32, 32), seed=1)) for name in models.MODELS)
    assert not is_static(nn.Sequential(nn.Conv2d(3, 3, 1), Branching()))


def test_steps_of_clients_and_augmented_model_are_cached():
    model = FlatModel(models.build(Model(), 10, (1, 28, 28), seed=1))
    clients = steps_of(model, Training(epochs=1))
    assert steps_of(model, Training(epochs=7)) is clients
    augmented = steps_of(model, Training(momentum=0.5))
    assert steps_of(model, Training(lr=1)) is clients
    assert steps_of(model, Training(momentum=0.5)) is augmented
    steps_of(model, Training(momentum=0.9))
    assert (
        len(model.cached_steps) == 2
        and steps_of(model, Training(momentum=0.5)) is augmented
        and steps_of(model, Training()) is not clients
    )


class Recorder(TorchDispatchMode):
    """Record the names of torch's operations, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.append(function.name())
        return function(*arguments, **(keywords or {}))


WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "item",
    "equal",
    "unique",
    "bincount",
)


def waits(names, of="nll_loss_backward"):
    """Return the synchronizing operations between the first and the last operation with `of` in its name."""
    losses = [index for index, name in enumerate(names) if of in name]
    assert len(losses) > 2
    return [name for name in names[losses[0] : losses[-1]] if any(word in name for word in WAITING)]


@pytest.mark.parametrize(
    ("name", "settings", "more"),
    [
        (
            "pfl_cnn",
            Training(epochs=2, batch_size=8, momentum=0.9, weight_decay=1e-3, crop=2, flip=True),
            {"mu": 0.1},
        ),
        ("resnet18", Training(epochs=2, batch_size=14), {"corrected": True}),
        ("lenet5", Training(epochs=2, batch_size=8, dtype="bfloat16"), {}),
    ],
)
def test_no_step_synchronizes_with_the_device(name, settings, more):
    with Recorder() as recorder:
        trained(name, settings, times=1, **more)
    assert waits(recorder.names) == []


def test_a_synchronizing_operation_is_detected():
    class Waiting(nn.Module):
        def forward(self, images):
            return images * float(images.mean() > 0)

    module = nn.Sequential(Waiting(), nn.Flatten(), nn.Linear(3072, 10))
    with Recorder() as recorder:
        train(
            FlatModel(module),
            FlatModel(module).weights.clone(),
            IMAGES,
            LABELS,
            Training(epochs=2, batch_size=8),
            np.random.default_rng(0),
        )
    assert waits(recorder.names)


def test_no_batched_step_synchronizes_with_the_device():
    model, settings = (
        FlatModel(models.build(Model(name="pfl_cnn"), 10, (3, 32, 32), seed=1)),
        LocalTraining(epochs=1, batch_size=8, clients_per_batch=2),
    )
    twin = BatchedModel(model, (3, 32, 32), settings)
    with Recorder() as recorder:
        twin.train(
            model.weights.clone(),
            [(IMAGES, LABELS)] * 2,
            [settings] * 2,
            [np.random.default_rng(key) for key in range(2)],
        )
    assert waits(recorder.names, of="convolution_backward") == []


def test_no_evaluation_chunk_synchronizes_with_the_device():
    model = FlatModel(models.build(Model(name="cnn"), 10, (3, 32, 32), seed=1))
    parts = [(IMAGES[start : start + 9], LABELS[start : start + 9]) for start in (0, 9, 18)]
    with Recorder() as recorder:
        totals = evaluate(model, iter(parts), 10, 3)
    assert waits(recorder.names, of="cross_entropy") == []
    guesses = model.module(IMAGES).argmax(1)
    assert totals[:-1].tolist() == [((guesses == one) & (one == LABELS)).sum() for one in range(10)]
    assert evaluate(model, iter(()), 10, 3).tolist() == [0] * 11
