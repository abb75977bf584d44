"""FedNova (Wang et al. 2020, Eq. 9): average the updates per local step, times the effective number of steps.

Client n's update is divided by tau_n, the total weight of its gradients: its number of steps or, with
momentum m, the sum over steps k of (1 - m^(tau - k)) / (1 - m). The average is multiplied by tau_eff = sum_n
rho_n tau_n. Written as a sum of models, omega_n has the coefficient rho_n tau_eff / tau_n, and omega^t has 1
minus the sum of these, which may be negative. With the same number of steps at every client it is FedAvg. It
sends and keeps nothing besides the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.federation.algorithms.interface import Algorithm
from genfl_mpi.learning.batches import local_batches

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Cohort, Received


def coefficients(cohort: Cohort, config: Config) -> np.ndarray:
    """Return rho_n tau_eff / tau_n of each client, float64 (K,)."""
    steps = cohort.epochs * local_batches(cohort.samples, config.training.batch_size)
    m = config.training.momentum
    tau = (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)
    return cohort.rho * (cohort.rho @ tau) / tau


def average(omega: torch.Tensor, received: Received, config: Config) -> torch.Tensor:
    """Add omega^t's share to the clients' sum, float64 (size,).

    BatchNorm statistics are averaged as values, with the coefficients divided by their sum: a variance
    computed from differences could be negative.
    """
    total, weight, parameters = received.model, received.coefficient, received.parameters
    return torch.cat(
        [total[:parameters] + (1 - weight) * omega[:parameters].double(), total[parameters:] / weight]
    )


FEDNOVA = Algorithm(
    "fednova",
    coefficients=coefficients,
    average=average,
    summary="Average the clients' updates per local step (Wang et al. 2020).",
)
