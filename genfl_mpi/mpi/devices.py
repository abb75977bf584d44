"""Which cores and which GPU a rank computes on."""

import os

import torch

from genfl_mpi.errors import UserError
from genfl_mpi.mpi.collectives import MPI


def resolve(comm, runtime):
    """(threads, device kind) for settings config.runtime, the same on every rank. Collective.

    Threads default to the smallest share that a rank has of the cores which the ranks of its node may use together.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    threads = comm.allreduce(max(1, len(set().union(*node.allgather(os.sched_getaffinity(0)))) // node.size), op=MPI.MIN)
    gpus = comm.allreduce(torch.cuda.device_count(), op=MPI.MIN)
    node.Free()
    if runtime.device == "cuda" and gpus == 0:
        raise UserError("runtime.device=cuda, but not every rank sees a GPU that torch can use; set runtime.device=cpu")
    device = runtime.device if runtime.device != "auto" else ("cuda" if gpus else "cpu")
    return runtime.threads or threads, device


def use(comm, threads, kind):
    """Set this rank's threads and return its torch device; the ranks of a node take its GPUs in turn."""
    torch.set_num_threads(threads)
    if kind == "cpu":
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same bits every time, as far as the library can
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank)
    local_rank = node.rank
    node.Free()
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
