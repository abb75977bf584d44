"""FedAvg (McMahan et al. 2017): omega_fl = sum_n rho_n omega_n.

It sends and keeps nothing besides the weights.
"""

from genfl_mpi.federation.algorithms.interface import Algorithm

FEDAVG = Algorithm("fedavg", summary="Average the clients' models (McMahan et al. 2017).")
