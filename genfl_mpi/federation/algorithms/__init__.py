"""Federated algorithms: one file each. `algorithm.name` names one of these, or an `Algorithm` of the user's as module:name."""

from genfl_mpi.config import functions
from genfl_mpi.federation.algorithms.fedavg import FEDAVG
from genfl_mpi.federation.algorithms.fednova import FEDNOVA
from genfl_mpi.federation.algorithms.fedprox import FEDPROX
from genfl_mpi.federation.algorithms.interface import Algorithm
from genfl_mpi.federation.algorithms.scaffold import SCAFFOLD
from genfl_mpi.federation.algorithms.server_optimizers import FEDADAM, FEDAVGM, FEDYOGI
from genfl_mpi.util.errors import UserError

ALGORITHMS = {one.name: one for one in (FEDAVG, FEDPROX, FEDNOVA, FEDAVGM, FEDADAM, FEDYOGI, SCAFFOLD)}


def find(config):
    """The configured `Algorithm`. Raises UserError if there is none of that name, or the configuration does not go with it."""
    name = config.algorithm.name
    found = functions.find(name, ALGORITHMS, "algorithm.name", Algorithm)
    if config.training.clients_per_batch > 1 and not found.can_batch:
        raise UserError(
            f"algorithm.name={name} needs training.clients_per_batch=1: it trains each client in a way of its own"
        )
    if config.audit and found.corrects_gradients:
        raise UserError(f"audit reads the clients' gradients, which algorithm.name={name} corrects")
    found.check(config)
    return found
