"""FedAvgM (Hsu et al. 2019), FedAdam and FedYogi (Reddi et al. 2021, algorithm 2): optimizers at the server.

Delta = sum_n rho_n omega_n - omega^t, the mean update of the parameters, replaces the gradient:

    FedAvgM   m <- beta1 m + Delta                     omega_fl = omega^t + server_lr m
    FedAdam   m <- beta1 m + (1 - beta1) Delta         v <- beta2 v + (1 - beta2) Delta^2
    FedYogi   m as in FedAdam                          v <- v - (1 - beta2) Delta^2 sign(v - Delta^2)
              omega_fl = omega^t + server_lr m / (sqrt(v) + tau)    without bias correction; v starts at tau^2

BatchNorm statistics, which are not parameters, are averaged as in FedAvg. FedAvgM with beta1 = 0 and
server_lr = 1 is FedAvg. Nothing is sent besides the weights; the server keeps m, and v, float64
(parameters,).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from genfl_mpi.federation.algorithms.interface import Algorithm, Array

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Received, Tensors, Weights

Step: TypeAlias = "Callable[[Tensors, Weights, Any], Weights]"


def _fedavgm(state: Tensors, delta: Weights, settings: Any) -> Weights:
    """Apply the mean update with momentum at the server (Hsu et al. 2019)."""
    state["momentum"] = settings.beta1 * state.get("momentum", 0) + delta
    return settings.server_lr * state["momentum"]


def _fedadam(state: Tensors, delta: Weights, settings: Any) -> Weights:
    """Apply the mean update by Adam at the server (Reddi et al. 2021)."""
    square = state.get("square", torch.full_like(delta, settings.tau**2))
    state["square"] = settings.beta2 * square + (1 - settings.beta2) * delta**2
    return _adaptive(state, delta, settings)


def _fedyogi(state: Tensors, delta: Weights, settings: Any) -> Weights:
    """Apply the mean update by Yogi at the server, Adam with slower growing steps (Reddi et al. 2021)."""
    square = state.get("square", torch.full_like(delta, settings.tau**2))
    state["square"] = square - (1 - settings.beta2) * delta**2 * torch.sign(square - delta**2)
    return _adaptive(state, delta, settings)


def _adaptive(state: Tensors, delta: Weights, settings: Any) -> Weights:
    state["momentum"] = settings.beta1 * state.get("momentum", 0) + (1 - settings.beta1) * delta
    return settings.server_lr * state["momentum"] / (state["square"].sqrt() + settings.tau)


def _declare(names: tuple[str, ...], parameters: int, config: Config) -> dict[str, Array]:
    return {name: Array((parameters,), "server") for name in names}


def _aggregate(
    step: Step, state: Tensors, omega: Weights, average: Weights, received: Received, config: Config
) -> Weights:
    parameters = received.parameters
    before = omega[:parameters].double()
    change = step(state, average[:parameters] - before, config.algorithm)
    return torch.cat([before + change, average[parameters:]])


def _algorithm(name: str, step: Step, *moments: str) -> Algorithm:
    return Algorithm(
        name,
        declare=partial(_declare, moments),
        aggregate=partial(_aggregate, step),
        summary=(step.__doc__ or "").strip(),
    )


FEDAVGM = _algorithm("fedavgm", _fedavgm, "momentum")
FEDADAM = _algorithm("fedadam", _fedadam, "momentum", "square")
FEDYOGI = _algorithm("fedyogi", _fedyogi, "momentum", "square")
