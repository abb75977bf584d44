"""What lies on a GPU and travels between ranks: from its own memory where the MPI library can send from there, else through
page-locked memory of the host."""

import numpy as np
import torch

from genfl_mpi.mpi import collectives


def zeros(count, dtype, device):
    """A NumPy array of zeros: page-locked if `device` is a GPU, which then copies from and to it at full speed."""
    if device.type != "cuda":
        return np.zeros(count, dtype)
    return (
        torch.zeros(count * np.dtype(dtype).itemsize, dtype=torch.uint8, pin_memory=True).numpy().view(dtype)
    )


def reduce(comm, message, partial, aware):
    """Sum a `Reduction` message over ranks, in place on rank 0's.

    partial: int64 like its buffer, on the GPU, of which the part of the sums is this rank's; None if that is in the message.
    aware: whether the MPI library sends from a GPU's memory.
    """
    if partial is None:
        return collectives.reduce_sum(comm, message.buffer)
    size, host = len(message.units), torch.from_numpy(message.buffer)
    if not aware:
        host[:size].copy_(partial[:size])
        return collectives.reduce_sum(comm, message.buffer)
    partial[size:].copy_(host[size:])
    if partial.device.type == "cuda":
        torch.cuda.synchronize(partial.device)  # MPI knows of no streams
    collectives.reduce_sum(comm, partial)
    if comm.rank == 0:
        host.copy_(partial)
