"""Messages with data on a GPU: sent from its memory if the MPI library can, else from the host's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from genfl_mpi.mpi import collectives

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from genfl_mpi.mpi.collectives import MPI


class SumMessage(Protocol):
    """The part of a `Reduction` message used here: its buffer, int64, which begins with the sums, `units`."""

    buffer: np.ndarray
    units: np.ndarray


def zeros(count: int, dtype: DTypeLike, device: torch.device) -> np.ndarray:
    """Return a NumPy array of zeros, page-locked if `device` is a GPU: copies then run at full speed."""
    if device.type != "cuda":
        return np.zeros(count, dtype)
    return (
        torch.zeros(count * np.dtype(dtype).itemsize, dtype=torch.uint8, pin_memory=True).numpy().view(dtype)
    )


def reduce(comm: MPI.Comm, message: SumMessage, partial: torch.Tensor | None, aware: bool) -> None:
    """Sum a `Reduction` message over ranks, in place on rank 0. Collective.

    partial: int64, shaped like the message's buffer, on the GPU, with this rank's sums in its first part;
    None if these are in the message already. aware: whether the MPI library can send from a GPU's memory.
    """
    if partial is None:
        collectives.reduce_sum(comm, message.buffer)
        return
    size, host = len(message.units), torch.from_numpy(message.buffer)
    if not aware:
        host[:size].copy_(partial[:size])
        collectives.reduce_sum(comm, message.buffer)
        return
    partial[size:].copy_(host[size:])
    if partial.device.type == "cuda":
        torch.cuda.synchronize(partial.device)  # MPI does not know CUDA streams
    collectives.reduce_sum(comm, partial)
    if comm.rank == 0:
        host.copy_(partial)
