"""SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II): correct every local gradient by c - c_n.

    client   y <- y - lr (g(y) - c_n + c)
             c_n+ = c_n - c + (omega^t - y) / (steps lr)
    server   c <- c + 1/N sum_n (c_n+ - c_n)           over the cohort; N: all clients

Besides the weights it sends c, 4 bytes a parameter to every rank, and the sum of the changes, 8 bytes a
parameter from every rank. Every client that has trained keeps its c_n, 4 bytes a parameter. In the first
round, where c and all c_n are 0, it is FedAvg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.federation.algorithms.interface import Algorithm, Array, Contribution, Stage
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Client, Received, Tensors, Weights


def check(config: Config) -> None:
    """Raise UserError if clients train with momentum."""
    if config.training.momentum:
        raise UserError(
            "algorithm.name=scaffold needs training.momentum=0: its control variates are mean gradients"
        )


def declare(parameters: int, config: Config) -> dict[str, Array]:
    """Declare c, the sum of its changes, and every client's c_n."""
    return {
        "control": Array((parameters,), "broadcast"),
        "control_change": Array((parameters,), "sum"),
        "control_mean": Array((parameters,), "server"),
        "own_control": Array((parameters,), "client"),
    }


def broadcast(state: Tensors, config: Config) -> Tensors:
    """Send c."""
    return {"control": state["control_mean"]} if state else {}


def stages(client: Client, omega: Weights, arrays: Tensors, own: Tensors, config: Config) -> list[Stage]:
    """Train once, with c - c_n added to every gradient."""
    return [Stage(client.settings.epochs, correction=arrays["control"] - own["own_control"])]


def contribute(
    client: Client, omega: Weights, trained: Weights, arrays: Tensors, own: Tensors, config: Config
) -> Contribution:
    """Contribute the change of c_n divided by N, and keep the new c_n."""
    moved = omega[: client.parameters] - trained[: client.parameters]
    new = own["own_control"] - arrays["control"] + moved / (client.steps * client.settings.lr)
    return Contribution(
        {"control_change": (1 / config.clients, new - own["own_control"])}, {"own_control": new}
    )


def aggregate(
    state: Tensors, omega: Weights, average: Weights, received: Received, config: Config
) -> Weights:
    """Update c. The model is the average, as in FedAvg."""
    state["control_mean"] = state.get("control_mean", 0) + received.sums["control_change"]
    return average


SCAFFOLD = Algorithm(
    "scaffold",
    declare=declare,
    check=check,
    broadcast=broadcast,
    stages=stages,
    contribute=contribute,
    aggregate=aggregate,
    can_batch=False,
    corrects_gradients=True,
    summary="Correct the clients' gradients by control variates (Karimireddy et al. 2020); doubles the "
    "messages, and stores an array of each client that has trained.",
)
