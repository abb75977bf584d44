"""FedNova (Wang et al. 2020, Eq. 9): the mean of the clients' updates for each local step, times the effective number of steps.

Client n's update is divided by tau_n, the weight that a gradient has in the whole of it: its number of steps, or with momentum m
the sum over steps k of (1 - m^(tau - k)) / (1 - m). The mean is multiplied by tau_eff = sum_n rho_n tau_n. As a sum of models,
omega_n has the coefficient rho_n tau_eff / tau_n, and what these lack of 1, or have above it, is the coefficient of omega^t. With
equally many steps at all clients it is FedAvg. Beside the weights nothing travels and nothing is kept.
"""

import torch

from genfl_mpi.federation.algorithms.interface import Algorithm
from genfl_mpi.learning.batches import local_batches


def coefficients(cohort, config):
    steps = cohort.epochs * local_batches(cohort.samples, config.training.batch_size)
    m = config.training.momentum
    tau = (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)
    return cohort.rho * (cohort.rho @ tau) / tau


def average(omega, received, config):
    """BatchNorm's statistics, of which a difference would be no variance, are averaged by the same coefficients over their sum."""
    total, weight, parameters = received.model, received.coefficient, received.parameters
    return torch.cat(
        [total[:parameters] + (1 - weight) * omega[:parameters].double(), total[parameters:] / weight]
    )


FEDNOVA = Algorithm("fednova", coefficients=coefficients, average=average)
