"""Slices: the cohort's models, divided over the ranks by coordinates.

Coordinates form blocks of BLOCK weights, the last one filled up with zeros. Every rank gets consecutive
blocks of all models, by one all-to-all. It sends 4 bytes for each weight of its clients' models, and receives
4 bytes for each of its coordinates and each model: with K models of n weights on R ranks 4 n K / R bytes
each, which it also holds. What is computed block by block does not depend on the number of ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.learning.weights import BLOCK
from genfl_mpi.mpi import collectives

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from genfl_mpi.mpi.collectives import MPI


class Slices:
    """Exchange the rows of one round. Constructed on every rank with the same arguments.

    size: weights of a row; rows: number of rows that each rank has, (ranks,).

    blocks: first block of each rank, and the number of all blocks, (ranks + 1,). bytes: sent by this rank.
    """

    def __init__(self, comm: MPI.Comm, size: int, rows: Sequence[int]) -> None:
        self.comm, self.size, self.rows = comm, size, list(rows)
        blocks = -(-size // BLOCK)
        self.blocks = [blocks * rank // comm.size for rank in range(comm.size + 1)]
        self.counts = [last - first for first, last in zip(self.blocks, self.blocks[1:])]
        # Ordered by destination, then by row: the message itself, so that no model is copied twice.
        self.sent = np.zeros(self.rows[comm.rank] * blocks * BLOCK, dtype=np.float32)
        self.bytes = self.sent.nbytes

    def put(self, row: int, weights: torch.Tensor) -> None:
        """Store a row of this rank. weights: float32 (size,), on any device."""
        values, begin = weights.cpu().numpy(), 0
        for first, count in zip(self.blocks, self.counts):
            width, part = count * BLOCK, values[first * BLOCK : (first + count) * BLOCK]
            start = begin + row * width
            self.sent[start : start + len(part)] = part
            begin += self.rows[self.comm.rank] * width

    def exchange(self) -> np.ndarray:
        """Return this rank's coordinates of all rows, float32 (rows, coordinates). Collective.

        Rows are ordered by rank, then as each rank numbered them.
        """
        own, mine = self.rows[self.comm.rank], self.counts[self.comm.rank]
        if self.comm.size == 1:
            return self.sent.reshape(own, -1)
        received = np.empty((sum(self.rows), mine * BLOCK), dtype=np.float32)
        collectives.exchange(
            self.comm,
            self.sent,
            [own * count for count in self.counts],
            received,
            [rows * mine for rows in self.rows],
            BLOCK,
        )
        return received

    def own_blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield each block of this rank: its coordinates in the vector, and in the received rows."""
        offset = self.blocks[self.comm.rank] * BLOCK
        for block in range(self.blocks[self.comm.rank], self.blocks[self.comm.rank + 1]):
            inside = slice(block * BLOCK, min((block + 1) * BLOCK, self.size))
            yield inside, slice(inside.start - offset, inside.stop - offset)
