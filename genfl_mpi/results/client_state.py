"""What every client keeps for itself from round to round: a state file for each client that has trained.

They take 4 bytes a value and client, in a folder that all ranks see, as `sealed_files`. A file's name has
the round that wrote it, so that a run which continues from an earlier round finds what was there then. Files
of other names in the folder are left alone.

A power cut never takes a state file that a checkpoint refers to. The rank that writes a file flushes its
content before the rename; rank 0 flushes the folder before it writes the checkpoint. One flush covers the
files of all ranks: they are renamed before the reduction, and on a file system that nodes share it is the
server that renames. What a power cut may do: take files of rounds after the newest checkpoint, which are
computed again and write their files again; and bring back pruned files, which nothing reads and the next
pruning removes.
"""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from genfl_mpi.results import disk, sealed_files
from genfl_mpi.util.errors import UserError


class ClientStates:
    """folder: of the files; shapes: {name: shape} of each client's arrays; run: the id of the run that they are of."""

    def __init__(self, folder, shapes, run):
        self.folder, self.shapes, self.run = Path(folder), shapes, run

    def read(self, client, round):
        """Return what `client` wrote in `round`, {name: float32 array}; zeros for round 0, which is never. Raises UserError."""
        if round == 0:
            return {name: np.zeros(shape, dtype=np.float32) for name, shape in self.shapes.items()}
        path, fault = self._path(client, round), "is damaged"
        try:
            identity, arrays = sealed_files.read(path)
            if identity.get("run", self.run) != self.run:
                fault = f"is of run {identity['run']}, and this is run {self.run}"
            elif identity == self._identity(client, round) and self.shapes == {
                name: array.shape for name, array in arrays.items()
            }:
                return arrays
        except FileNotFoundError:
            fault = "is missing"
        except sealed_files.Damaged:
            pass
        raise UserError(
            f"{path}: the state of client {client} {fault}: the run cannot be "
            "continued; set another `output`, or start over with --fresh"
        )

    def write(self, client, round, arrays):
        """Store {name: float32 array} in one step. Raises UserError if that is not possible."""
        sealed_files.write(self._path(client, round), self._identity(client, round), arrays)

    def flush(self):
        """Bring the names of all files to the disk, before a checkpoint refers to them. Raises UserError."""
        try:
            if self.folder.is_dir():
                disk.flush(self.folder)
        except OSError as error:
            raise disk.failed(self.folder, error) from None

    def prune(self, checkpoints):
        """Remove what no checkpoint needs. checkpoints: of each, oldest first, the round in which each client trained last,
        int (clients,); what is newer than the newest is of a round that goes on."""
        for path in self.folder.glob("*_*.safetensors"):
            name = re.fullmatch(r"(0|[1-9][0-9]*)_([1-9][0-9]*)", path.stem, re.ASCII)
            client, round = map(int, name.groups()) if name and path.is_file() else (np.inf, 0)
            if client >= len(checkpoints[-1]):  # not one of ours
                continue
            if round < checkpoints[-1][client] and all(round != last[client] for last in checkpoints):
                with suppress(OSError):  # nothing reads it
                    path.unlink()

    def take(self, folder, run, last):
        """Copy from another run's folder what every client wrote last. run: that run's id; last: the rounds
        of these, int (clients,). Raises UserError."""
        others = ClientStates(folder, self.shapes, run)
        for client, round in enumerate(last.tolist()):
            if round:
                self.write(client, round, others.read(client, round))

    def _path(self, client, round):
        return self.folder / f"{client}_{round}.safetensors"

    def _identity(self, client, round):
        return {"run": self.run, "client": str(client), "round": str(round)}
