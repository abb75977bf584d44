"""The interface of a federated algorithm: a few functions, independent of MPI, ranks, files and GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.refinements.tools import Tools
    from genfl_mpi.learning.steps import Loss

Weights: TypeAlias = torch.Tensor
Tensors: TypeAlias = dict[str, torch.Tensor]
Kind: TypeAlias = Literal["broadcast", "sum", "server", "client"]


class Array(NamedTuple):
    """Declare an array of an algorithm. Buffers, checkpoints, `plan` and overflow bounds follow from it.

    kind: broadcast (float32, from rank 0 to every rank before the clients train); sum (an exact sum of the
    clients' contributions, read as float64); server (kept by rank 0, in the checkpoint); client (float32,
    kept by each client; zeros before it first trains). fraction_bits: of a sum in 64-bit fixed point; the sum
    of |coefficient| times the largest |value| must stay below 2 ** (62 - fraction_bits).
    """

    shape: tuple[int, ...]
    kind: Kind
    fraction_bits: int = 40


class Cohort(NamedTuple):
    """Describe the clients whose models are summed.

    ids, samples, epochs: int64 (K,). rho: float64 (K,), not negative, with sum 1.
    """

    ids: np.ndarray
    samples: np.ndarray
    epochs: np.ndarray
    rho: np.ndarray


class Client(NamedTuple):
    """Describe a client in training.

    samples: number it trains on. steps: of its local training. settings: `training` of this round, with this
    client's number of epochs. parameters: number of trainable weights, which come first in the weight vector.
    last: the round in which its arrays were written, counted from 1; 0 if it has none yet.
    """

    id: int
    samples: int
    steps: int
    settings: Any
    parameters: int
    last: int = 0


class Stage(NamedTuple):
    """Describe one local training.

    epochs: passes over the client's data. prox: mu of a proximal term mu / 2 |w - omega^t|^2 in the loss.
    correction: float32 (parameters,), added to every gradient, or None. loss: (model, images, labels) ->
    (loss, logits), a function of the `FlatModel` in training and of a batch, in place of the cross-entropy;
    it may draw from torch's global random stream, which is keyed by seed, round and client.
    """

    epochs: int
    prox: float = 0.0
    correction: torch.Tensor | None = None
    loss: Loss | None = None


class Contribution(NamedTuple):
    """Hold a client's contribution besides its model.

    sums: {name: (coefficient, float32 tensor)}, added to the declared sums. client_arrays: {name: float32
    tensor}, new values of the client's arrays.
    """

    sums: dict[str, tuple[float, torch.Tensor]]
    client_arrays: Tensors


class Received(NamedTuple):
    """Hold what the server receives in a round.

    model: float64 (size,), the sum of the clients' models times their coefficients. coefficient: the sum of
    the coefficients. sums: {name: float64 tensor}. parameters: number of trainable weights, which come first.
    """

    model: torch.Tensor
    coefficient: float
    sums: Tensors
    parameters: int


def _declare(parameters: int, config: Config) -> dict[str, Array]:
    return {}


def _check(config: Config) -> None:
    pass


def _coefficients(cohort: Cohort, config: Config) -> np.ndarray:
    return cohort.rho


def _broadcast(state: Tensors, config: Config) -> Tensors:
    return {}


def _stages(client: Client, omega: Weights, arrays: Tensors, own: Tensors, config: Config) -> list[Stage]:
    return [Stage(client.settings.epochs)]


def _contribute(
    client: Client, omega: Weights, trained: Weights, arrays: Tensors, own: Tensors, config: Config
) -> Contribution:
    return Contribution({}, {})


def _average(omega: Weights, received: Received, config: Config) -> Weights:
    return received.model


def _aggregate(
    state: Tensors, omega: Weights, average: Weights, received: Received, config: Config
) -> Weights:
    return average


def _refine(state: Tensors, omega: Weights, tools: Tools, config: Config) -> Weights:
    return omega


def _asks(config: Config) -> tuple[int, ...] | None:
    return None


def _server_passes(config: Config, models: int) -> float:
    return 0.0


@dataclass(frozen=True)
class Algorithm:
    """Define a federated algorithm. Functions that are not given are FedAvg's.

    declare(parameters, config) -> {name: Array}
        Declare the arrays that are sent or kept besides the weights.
    check(config)
        Raise UserError if the configuration does not fit the algorithm.
    coefficients(cohort, config) -> float64 (K,)
        Return each model's coefficient in the sum; rho by default. If clients drop out after training, it is
        called again for the remaining clients, with their rho scaled to sum 1, and the sum is scaled
        accordingly.
    broadcast(state, config) -> {name: array}
        Return the values of the declared broadcast arrays. Called on rank 0 before the clients train.
    stages(client, omega, arrays, own, config) -> list of `Stage`
        Return one or more local trainings; each starts where the previous one ended. omega: float32 (size,),
        the global weights; arrays: the broadcast arrays; own: the client's arrays. All tensors are on the
        device.
    contribute(client, omega, trained, arrays, own, config) -> `Contribution`
        Return a client's contribution besides its model. trained: float32 (size,), its weights. Not called
        for clients with a loss or weights that are not finite.
    average(omega, received, config) -> float64 (size,)
        Return the mean of the clients' models; their weighted sum by default. Called on rank 0. omega:
        float32 (size,).
    aggregate(state, omega, average, received, config) -> float64 (size,)
        Return the federated model omega_fl, before Eq. (1); the average by default. Called on rank 0. state:
        {name: float64 tensor}, the declared server arrays; an empty dict at first; may be modified.
    refine(state, omega, tools, config) -> float64 (size,)
        Return the global weights after Eq. (1), before the refinements of composition.use; by default as they
        are. Called on rank 0. omega: float64 (size,); tools: `refinements.tools.Tools`.
    asks(config) -> shape or None
        Return the shape of an input about which `refine` asks the clients' models: (features,) of their
        output layer, or (C, H, W) of an image. None, the default: it asks nothing.
    server_passes(config, models) -> float
        Return what `refine` costs in a round, for `price`: forward passes of a sample, of which a training
        step costs 3. models: of clients.

    can_batch: whether several clients can train as one batched computation (`training.clients_per_batch`).
    corrects_gradients: whether a client's update depends on more than its gradients, so that `audit` cannot
    infer its labels from the update. client_cost: FLOPs of a client's step relative to plain SGD, for `price`
    and worlds. summary: one line for `help algorithm.name`.
    """

    name: str
    declare: Callable[..., dict[str, Array]] = _declare
    check: Callable[[Config], None] = _check
    coefficients: Callable[[Cohort, Config], np.ndarray] = _coefficients
    broadcast: Callable[[Tensors, Config], Mapping[str, Any]] = _broadcast
    stages: Callable[[Client, Weights, Tensors, Tensors, Config], list[Stage]] = _stages
    contribute: Callable[..., Contribution] = _contribute
    average: Callable[[Weights, Received, Config], Weights] = _average
    aggregate: Callable[[Tensors, Weights, Weights, Received, Config], Weights] = _aggregate
    refine: Callable[[Tensors, Weights, Tools, Config], Weights] = _refine
    asks: Callable[[Config], tuple[int, ...] | None] = _asks
    server_passes: Callable[[Config, int], float] = _server_passes
    can_batch: bool = True
    corrects_gradients: bool = False
    client_cost: float = 1.0
    summary: str = ""

    def arrays_of_kind(self, kind: Kind, parameters: int, config: Config) -> dict[str, Array]:
        """Return the declared arrays of one kind by name."""
        return {name: array for name, array in self.declare(parameters, config).items() if array.kind == kind}

    @property
    def averages_by_rho(self) -> bool:
        """Whether the mean of the clients' models is their sum, weighted by rho."""
        return self.coefficients is _coefficients and self.average is _average

    def has_memory(self, config: Config) -> bool:
        """Return whether resuming a run needs more than the weights and the results file."""
        return any(array.kind in ("server", "client") for array in self.declare(1, config).values())
