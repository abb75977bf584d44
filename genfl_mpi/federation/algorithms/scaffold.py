"""SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II): every local gradient is corrected by c - c_n.

    client   y <- y - lr (g(y) - c_n + c)
             c_n+ = c_n - c + (omega^t - y) / (steps lr)
    server   c <- c + 1/N sum_n (c_n+ - c_n)           over the cohort; N: all clients

Beside the weights travel c, 4 bytes a parameter to every rank, and the sum of the changes, 8 bytes a parameter from every rank.
Every client that has trained keeps its c_n, 4 bytes a parameter. In its first round, in which c and all c_n are 0, it is FedAvg.
"""

from genfl_mpi.federation.algorithms.interface import Algorithm, Array, Contribution, Stage
from genfl_mpi.util.errors import UserError


def check(config):
    if config.training.momentum:
        raise UserError(
            "algorithm.name=scaffold needs training.momentum=0: its control variates are mean gradients"
        )


def declare(parameters, config):
    return {
        "control": Array((parameters,), "broadcast"),
        "control_change": Array((parameters,), "sum"),
        "control_mean": Array((parameters,), "server"),
        "own_control": Array((parameters,), "client"),
    }


def broadcast(state, config):
    return {"control": state["control_mean"]} if state else {}


def stages(client, omega, arrays, own, config):
    return [Stage(client.settings.epochs, correction=arrays["control"] - own["own_control"])]


def contribute(client, omega, trained, arrays, own, config):
    moved = omega[: client.parameters] - trained[: client.parameters]
    new = own["own_control"] - arrays["control"] + moved / (client.steps * client.settings.lr)
    return Contribution(
        {"control_change": (1 / config.clients, new - own["own_control"])}, {"own_control": new}
    )


def aggregate(state, omega, average, received, config):
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
)
