"""genfl_mpi: simulate generative federated learning over MPI."""

import os

__version__ = "0.3.0.dev0"
__all__ = ["Simulation", "UserError", "read_results"]

# Waiting threads sleep rather than spin: spinning takes shared cores from the threads that are waited for.
# The OpenMP libraries of GCC and of LLVM or Intel read these when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("KMP_BLOCKTIME", "0")


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
