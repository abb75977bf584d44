"""FedAvg (McMahan et al. 2017): omega_fl = sum_n rho_n omega_n. Beside the weights nothing travels and nothing is kept."""

from genfl_mpi.federation.algorithms.interface import Algorithm

FEDAVG = Algorithm("fedavg")
