"""What a federated algorithm is: a handful of functions that know nothing of MPI, ranks, files or GPUs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch


class Array(NamedTuple):
    """Declare an array of an algorithm: buffers, checkpoints, the `plan` command and overflow bounds follow from it.

    shape: of the array. kind: broadcast (float32, from rank 0 to every rank, before the clients train); sum (an exact sum of
    what clients contribute, read as float64); server (rank 0 keeps it, in the checkpoint); client (float32, each client keeps
    its own, zeros before it first trains). fraction_bits: of a sum in 64-bit fixed point; the sum of |coefficient| times the
    largest |value| must stay below 2 ** (62 - fraction_bits).
    """

    shape: tuple
    kind: Literal["broadcast", "sum", "server", "client"]
    fraction_bits: int = 40


class Cohort(NamedTuple):
    """The clients whose models are summed. ids, samples, epochs: int64 (K,); rho: float64 (K,), not negative, with sum 1."""

    ids: np.ndarray
    samples: np.ndarray
    epochs: np.ndarray
    rho: np.ndarray


class Client(NamedTuple):
    """A client that trains. samples: that it trains on; steps: of its local training; settings: `training` of this round, with
    the client's own number of epochs; parameters: how many of the weights are parameters, which come first."""

    id: int
    samples: int
    steps: int
    settings: Any
    parameters: int


class Stage(NamedTuple):
    """A local training. epochs: passes over the client's data. prox: mu of a proximal term mu / 2 |w - omega^t|^2 in the loss.
    correction: float32 (parameters,), added to every gradient, or None."""

    epochs: int
    prox: float = 0.0
    correction: torch.Tensor | None = None


class Contribution(NamedTuple):
    """What a client adds to the declared sums, {name: (coefficient, float32 tensor)}, and the new values of the arrays that it
    keeps, {name: float32 tensor}."""

    sums: dict
    own: dict


class Received(NamedTuple):
    """What the server gets of a round. model: float64 (size,), the sum of the clients' models by their coefficients;
    coefficient: the sum of these; sums: {name: float64 tensor}; parameters: how many of the weights are parameters."""

    model: torch.Tensor
    coefficient: float
    sums: dict
    parameters: int


def _declare(parameters, config):
    return {}


def _check(config):
    pass


def _coefficients(cohort, config):
    return cohort.rho


def _broadcast(state, config):
    return {}


def _stages(client, omega, arrays, own, config):
    return [Stage(client.settings.epochs)]


def _contribute(client, omega, trained, arrays, own, config):
    return Contribution({}, {})


def _average(omega, received, config):
    return received.model


def _aggregate(state, omega, average, received, config):
    return average


@dataclass(frozen=True)
class Algorithm:
    """A federated algorithm. Every function that is not given is FedAvg's.

    declare(parameters, config) -> {name: Array}
        The arrays that travel or are kept beside the weights.
    check(config)
        Raise UserError if the configuration does not go with the algorithm.
    coefficients(cohort, config) -> float64 (K,)
        What each client's model is multiplied by in the sum; rho by default. Where clients of the cohort drop out after
        training, it is asked again for the others, with their rho scaled to sum 1, and the sum is scaled likewise.
    broadcast(state, config) -> {name: array}
        The values of the declared broadcast arrays, on rank 0 before the clients train.
    stages(client, omega, arrays, own, config) -> list of `Stage`
        What a client does: one or more local trainings, each from where the last one ended. omega: float32 (size,), the
        global weights; arrays: the broadcast arrays; own: the client's arrays; tensors on the device.
    contribute(client, omega, trained, arrays, own, config) -> `Contribution`
        What a client gives and keeps beside its model. trained: float32 (size,), its weights. Not asked of clients whose loss
        or weights are not finite.
    average(omega, received, config) -> float64 (size,)
        The mean of the clients' models, on rank 0; their weighted sum by default. omega: float32 (size,).
    aggregate(state, omega, average, received, config) -> float64 (size,)
        The federated model omega_fl, on rank 0, before Eq. (1); the average by default. state: {name: float64 tensor}, the declared
        server arrays, which it may change and which begin as an empty dict.

    can_batch: whether clients may be trained as one batched computation (`training.clients_per_batch`). corrects_gradients: whether
    a client's update follows from more than its own gradients, so that `audit` cannot read its labels from it.
    """

    name: str
    declare: Callable = _declare
    check: Callable = _check
    coefficients: Callable = _coefficients
    broadcast: Callable = _broadcast
    stages: Callable = _stages
    contribute: Callable = _contribute
    average: Callable = _average
    aggregate: Callable = _aggregate
    can_batch: bool = True
    corrects_gradients: bool = False

    def declared(self, kind, parameters, config):
        """The declared arrays of a kind, {name: Array}."""
        return {name: array for name, array in self.declare(parameters, config).items() if array.kind == kind}

    def remembers(self, config):
        """Whether a run needs more than the weights and the results file to go on."""
        return any(array.kind in ("server", "client") for array in self.declare(1, config).values())
