"""FedProx (Li et al. 2020, Eq. 2): a client minimises F_n(w) + mu / 2 |w - omega^t|^2. With mu = 0 it is FedAvg.

mu: algorithm.mu. Beside the weights nothing travels and nothing is kept.
"""

from genfl_mpi.federation.algorithms.interface import Algorithm, Stage


def stages(client, omega, arrays, own, config):
    return [Stage(client.settings.epochs, prox=config.algorithm.mu)]


FEDPROX = Algorithm("fedprox", stages=stages)
