"""The simulator against a plain loop written from the paper alone."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genfl_mpi import Simulation
from genfl_mpi.learning import models

ROUNDS, EPOCHS, LR = 3, 2, 0.05


def paper(model, clients, pools, kappa2):
    """Train as in Section III of the paper.

    clients: for each round a list of (images, labels) of the cohort; pools: D_gen of each round.
    """

    def trained(data):
        local = copy.deepcopy(model).train()
        sgd = torch.optim.SGD(local.parameters(), lr=LR)
        for _ in range(EPOCHS):
            sgd.zero_grad()
            F.cross_entropy(local(data[0]), data[1]).backward()
            sgd.step()
        return local.state_dict()

    for cohort, pool in zip(clients, pools):
        total = sum(len(labels) for _, labels in cohort)
        mean = {
            name: torch.zeros_like(value, dtype=torch.float64) for name, value in model.state_dict().items()
        }
        for data in cohort:
            for name, value in trained(data).items():
                mean[name] += len(data[1]) / total * value.double()
        if kappa2:
            for name, value in trained(pool).items():
                mean[name] = (1 - kappa2) * mean[name] + kappa2 * value.double()
        model.load_state_dict(mean)
    return model


def small_network_with_batchnorm(*_):
    # Not ResNet-18: on this few samples its BatchNorms amplify float32 rounding to a percent in any
    # implementation. Smooth, because rounding that flips a ReLU or a max-pool has a large effect.
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.AvgPool2d(4),
        nn.Conv2d(8, 16, 3),
        nn.BatchNorm2d(16),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


@pytest.mark.parametrize(("method", "kappa2"), [("fedavg", 0.0), ("genfl", 0.3)])
def test_three_rounds_with_unequal_clients_and_batchnorm(tiny, monkeypatch, method, kappa2):
    monkeypatch.setattr(models, "build", small_network_with_batchnorm)
    simulation = Simulation(
        overrides=[
            *tiny,
            f"method={method}",
            f"kappa.kappa2={kappa2}",
            f"rounds={ROUNDS}",
            "clients=40",
            f"training.epochs={EPOCHS}",
            f"training.lr={LR}",
            "training.batch_size=4000",
            "generation.cap=3",
        ]
    )

    def tensors(images, labels):
        return (torch.from_numpy(images).float() / 255 - 0.1307) / 0.3081, torch.from_numpy(labels)

    model = copy.deepcopy(simulation.model.module)
    start = copy.deepcopy(model.state_dict())
    data, clients, pools, pool = simulation.data, [], [], []
    for record in simulation:
        own = [
            data["indices"][data["pointers"][n] : data["pointers"][n + 1]] for n in record.clients["client"]
        ]
        assert len({len(samples) for samples in own}) > 1, "the clients should be unequal"
        clients.append(
            [tensors(data["train_images"][samples], data["train_labels"][samples]) for samples in own]
        )
        pool += [(images, np.array(batch.label)) for _, batch, images, _ in record.generated]
        pools.append(pool and tensors(*map(np.concatenate, zip(*pool))))
    expected, actual = paper(model, clients, pools, kappa2).state_dict(), simulation.model.module.state_dict()
    assert any("running_var" in name for name in expected)

    def vector(state):
        return torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])

    change = torch.linalg.norm(vector(expected) - vector(start))
    assert change > 0.1
    assert torch.linalg.norm(vector(actual) - vector(expected)) <= 1e-4 * change
