"""Buffers of a model: training does not depend on what its rank trained or tested before."""

import os

import numpy as np
import pytest
import torch
from conftest import mpirun
from torch import nn

from genfl_mpi.cli import main
from genfl_mpi.config.sections.local_training import LocalTraining, Model
from genfl_mpi.learning import models
from genfl_mpi.learning.batched_clients import BatchedModel
from genfl_mpi.learning.free_riders import free_ride
from genfl_mpi.learning.steps import Steps
from genfl_mpi.learning.training import train
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.results import reader

OWN_CODE = """
import torch
from torch import nn

class Steps(nn.Module):
    # counts its calls in place, by replacement, and outside the state dict; all counters affect the output
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("replaced", torch.zeros((), dtype=torch.int64))
        self.register_buffer("odd", torch.zeros((), dtype=torch.bool), persistent=False)

    def forward(self, images):
        self.steps += 1
        self.replaced = self.replaced + 1
        self.odd.logical_not_()
        return images * (1 + self.steps) / (1 + self.replaced + self.steps + self.odd)

class Mean(nn.Module):
    # a running mean that is replaced at each step
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * images.mean().detach()
        return images - self.mean

class Warming(nn.Module):
    # halves its input during the first twelve steps
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, images):
        self.steps = self.steps + 1
        return torch.where(self.steps > 12, images, images / 2)

def warming(classes, shape):
    return nn.Sequential(Warming(), nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

def stateful(classes, shape):
    return nn.Sequential(Steps(), nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4, momentum=None), Mean(),
                         nn.Flatten(), nn.Linear(4 * (shape[1] - 2) * (shape[2] - 2), classes))
"""
SETTINGS = LocalTraining(epochs=2, batch_size=4, clients_per_batch=2)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "own_buffers.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_buffers", raising=False)
    return tmp_path


def flat(name):
    return FlatModel(models.build(Model(name=f"own_buffers:{name}"), 10, (3, 8, 8), seed=1))


def data(seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(10, 3, 8, 8, generator=random), torch.arange(10)


def trained(model, start):
    report = train(model, start, *data(0), SETTINGS, np.random.default_rng(0))
    return report, model.weights.clone()


def test_the_same_bits_on_any_number_of_ranks(mine, fast):
    run = [
        *fast,
        "model.name=own_buffers:stateful",
        "cohort=6",
        "training.epochs=2",
        "training.batch_size=8",
        "rounds=2",
    ]
    assert main([*run, f"output={mine}/1"]) == 0
    for ranks in (2, 3):
        done = mpirun(
            ranks,
            "-m",
            "genfl_mpi",
            *run,
            f"output={mine}/{ranks}",
            PYTHONPATH=f"{mine}:{os.environ.get('PYTHONPATH', '')}",
        )
        assert done.returncode == 0, done.stderr
    assert len({reader.digests(mine / f"{ranks}/fedavg_seed1.h5") for ranks in (1, 2, 3)}) == 1


def test_earlier_training_and_testing_have_no_effect(mine):
    fresh = flat("stateful")
    start = fresh.weights.clone()
    expected = trained(fresh, start)
    used = flat("stateful")
    train(used, start, *data(1), SETTINGS, np.random.default_rng(1))
    free_ride(used, start, *data(1), 0.0, np.random.default_rng(1))
    used.load(start)
    with torch.inference_mode():
        used.module.eval()(data(1)[0])
    found = trained(used, start)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])
    used.load(start)
    fresh = flat("stateful")
    for model in (fresh, used):
        model.module.eval()
    assert torch.equal(used.module(data(2)[0]), fresh.module(data(2)[0])), (
        "earlier use must not affect later evaluation, either"
    )


def test_a_replaced_buffer_is_part_of_the_weights(mine):
    model = flat("stateful")
    start = model.weights.clone()
    mean = model.module[3].mean
    assert mean.data_ptr() == model.weights[-1:].data_ptr() and mean == 0
    trained(model, start)
    assert model.weights[-1] != 0 and model.module[3].mean is mean
    model.load(start)
    assert model.weights[-1] == 0


def test_batched_clients_start_from_the_initial_buffers(mine):
    model = flat("warming")
    start = model.weights.clone()
    twin = BatchedModel(model, (3, 8, 8), SETTINGS)
    train(model, start, *data(1), SETTINGS, np.random.default_rng(1))
    both = [[data(0), data(1)], [SETTINGS, SETTINGS]]
    first, _, second = (
        twin.train(start, *both, [np.random.default_rng(key) for key in range(2)]) for _ in range(3)
    )
    for (weights, report), (others, other) in zip(first, second):
        assert torch.equal(weights, others) and report == other
    _, alone = trained(model, start)
    torch.testing.assert_close(first[0][0], alone, rtol=0, atol=1e-6)


def test_preparing_a_graph_restores_the_counters(monkeypatch):
    """Warm-up, capture and comparison run steps, which must leave no trace."""
    monkeypatch.setattr(Steps, "_capture", lambda self, function: (lambda: function(), function()))
    model = FlatModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)))
    steps = Steps(model, SETTINGS)
    steps.begin(model.weights.clone(), SETTINGS.lr)
    steps.fixed = True
    steps._prepare(data(0))
    assert model.module[1].num_batches_tracked == 0
