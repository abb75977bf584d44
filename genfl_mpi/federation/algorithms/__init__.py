"""Federated algorithms, one file each.

`algorithm.name` is one of them, or module:name of your own `Algorithm`.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import TYPE_CHECKING

from genfl_mpi.config import functions
from genfl_mpi.federation.algorithms.data_free import DENSE, FEDFTG
from genfl_mpi.federation.algorithms.fedavg import FEDAVG
from genfl_mpi.federation.algorithms.fedgen import FEDGEN
from genfl_mpi.federation.algorithms.fednova import FEDNOVA
from genfl_mpi.federation.algorithms.fedprox import FEDPROX
from genfl_mpi.federation.algorithms.interface import Algorithm
from genfl_mpi.federation.algorithms.moon import MOON
from genfl_mpi.federation.algorithms.scaffold import SCAFFOLD
from genfl_mpi.federation.algorithms.server_optimizers import FEDADAM, FEDAVGM, FEDYOGI
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

ALGORITHMS = {
    algorithm.name: algorithm
    for algorithm in (
        FEDAVG,
        FEDPROX,
        FEDNOVA,
        FEDAVGM,
        FEDADAM,
        FEDYOGI,
        SCAFFOLD,
        MOON,
        FEDGEN,
        DENSE,
        FEDFTG,
    )
}


def find(config: Config) -> Algorithm:
    """Return the configured `Algorithm`.

    Raises UserError if it is unknown or does not fit the configuration.
    """
    name = config.algorithm.name
    found = functions.find(name, ALGORITHMS, "algorithm.name", Algorithm)
    _check_functions(name, found)
    if config.training.clients_per_batch > 1 and not found.can_batch:
        raise UserError(
            f"algorithm.name={name} cannot train several clients as one batch; "
            "set training.clients_per_batch=1"
        )
    if config.audit and found.corrects_gradients:
        raise UserError(
            f"audit cannot read labels from updates of algorithm.name={name}, which corrects the clients' "
            "gradients; set audit=false or another algorithm"
        )
    kept = ("coefficients", "broadcast", "contribute", "average", "aggregate")
    if config.time.driver != "synchronous" and (
        found.declare(1, config) or any(getattr(found, name) is not getattr(FEDAVG, name) for name in kept)
    ):
        raise UserError(
            f"algorithm.name={name} decides how a synchronous round is aggregated, but time.driver="
            f"{config.time.driver} does that; set time.driver=synchronous, or algorithm.name=fedavg"
        )
    found.check(config)
    return found


def _check_functions(name: str, algorithm: Algorithm) -> None:
    """Raise UserError unless every function of an algorithm takes the parameters of FedAvg's."""
    for field in fields(Algorithm):
        if callable(field.default):
            parameters = tuple(inspect.signature(field.default).parameters)
            what = f"algorithm.name: {field.name} of {name}"
            functions.check_signature(getattr(algorithm, field.name), parameters, what)
