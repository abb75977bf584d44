"""SCAFFOLD's control variates: what every client remembers, a file for each client that has trained.

They take 4 bytes a parameter and client, in a folder that all ranks see. A file's name has the round that wrote it, so that a
run which continues from an earlier round finds what was there then.
"""

import os
from pathlib import Path

import numpy as np

from genfl_mpi.errors import UserError
from genfl_mpi.results import space


class Variates:
    """folder: of the files; size: number of parameters."""

    def __init__(self, folder, size):
        self.folder, self.size = Path(folder), size

    def read(self, client, round):
        """float32 (size,): what `client` wrote in `round`; zeros for round 0, which is never. Raises UserError."""
        if round == 0:
            return np.zeros(self.size, dtype=np.float32)
        try:
            values = np.load(self._path(client, round), allow_pickle=False)
        except (OSError, ValueError):
            values = np.empty(0)
        if values.shape != (self.size,):
            raise UserError(f"{self._path(client, round)}: the control variate of client {client} is missing or damaged: the run cannot be continued; "
                            "set another `output`")
        return values

    def write(self, client, round, values):
        """Store float32 (size,) in one step. Raises UserError on a full disk."""
        path = self._path(client, round)
        path.parent.mkdir(parents=True, exist_ok=True)
        space.ensure(path.parent, values.nbytes)
        unfinished = path.with_name(f".{path.name}.new")
        with unfinished.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        os.replace(unfinished, path)

    def prune(self, checkpoints):
        """Remove what no checkpoint needs. checkpoints: of each, oldest first, the round in which each client trained last,
        int (clients,); what is newer than the newest is of a round that goes on."""
        for path in self.folder.glob("*_*.npy"):
            client, round = map(int, path.stem.split("_"))
            if round < checkpoints[-1][client] and all(round != last[client] for last in checkpoints):
                path.unlink()

    def take(self, folder, last):
        """Copy from another run's folder what every client wrote last, in the rounds `last`, int (clients,). Raises UserError."""
        for client, round in enumerate(last.tolist()):
            if round:
                self.write(client, round, Variates(folder, self.size).read(client, round))

    def _path(self, client, round):
        return self.folder / f"{client}_{round}.npy"
