"""genfl_mpi: simulate generative federated learning over MPI."""

import os

__version__ = "0.3.0.dev0"
__all__ = ["Simulation", "UserError", "read_results"]

# Waiting threads soon sleep: spinning takes cores from the threads that are waited for, and sleeping at once
# slows the short steps of small networks. GCC's OpenMP library reads this when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> object:
    # Imported on first use: the simulation imports torch and MPI, for which `--help` need not wait.
    if name == "Simulation":
        from genfl_mpi.federation.simulation import Simulation

        return Simulation
    if name == "read_results":
        from genfl_mpi.analysis.tables import read_results

        return read_results
    if name == "UserError":
        from genfl_mpi.util.errors import UserError

        return UserError
    raise AttributeError(f"module 'genfl_mpi' has no attribute {name!r}")
