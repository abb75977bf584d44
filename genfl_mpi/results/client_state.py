"""Client state: the arrays that each client keeps from round to round, in one state file a client.

State files are `sealed_files` of 4 bytes a value, in a folder that all ranks see. Only clients that have
trained have one. A file's name includes the round that wrote it, so a run that continues from an earlier
round finds the state of that round. Other files in the folder are not touched.

A power cut never loses a state file that a checkpoint refers to. The rank that writes a file flushes its
content before the rename; rank 0 flushes the folder before it writes the checkpoint. One flush covers the
files of all ranks: they are renamed before the reduction, and on a shared file system the file server does
the renaming. A power cut may lose files of rounds after the newest checkpoint; these rounds are computed
again and write their files again. It may also bring back pruned files; nothing reads them, and the next
pruning removes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from genfl_mpi.results import disk, sealed_files
from genfl_mpi.util.errors import UserError


class ClientStates:
    """Read and write the state files of a run.

    shapes: {name: shape} of each client's arrays; run: the run's id.
    """

    def __init__(self, folder: Path | str, shapes: Mapping[str, tuple[int, ...]], run: str) -> None:
        self.folder, self.shapes, self.run = Path(folder), shapes, run

    def read(self, client: int, round: int) -> dict[str, np.ndarray]:
        """Return the state that `client` wrote in `round`, {name: float32 array}. Raises UserError.

        Round 0 means that the client has not trained: its arrays are zeros.
        """
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
            f"{path}: the state of client {client} {fault}, so the run cannot continue; "
            "set another `output`, or start over with --fresh"
        )

    def write(self, client: int, round: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Store {name: float32 array} atomically. Raises UserError."""
        sealed_files.write(self._path(client, round), self._identity(client, round), arrays)

    def flush(self) -> None:
        """Flush the names of all files to disk, before a checkpoint refers to them. Raises UserError."""
        try:
            if self.folder.is_dir():
                disk.flush(self.folder)
        except OSError as error:
            raise disk.write_error(self.folder, error) from None

    def prune(self, checkpoints: Sequence[np.ndarray]) -> None:
        """Remove state files that no checkpoint needs.

        checkpoints: for each, oldest first, the round of each client's last training, int (clients,). Files
        newer than the newest checkpoint belong to the current round, and are kept.
        """
        for path in self.folder.glob("*_*.safetensors"):
            name = re.fullmatch(r"(0|[1-9][0-9]*)_([1-9][0-9]*)", path.stem, re.ASCII)
            if not name or not path.is_file():
                continue
            client, round = map(int, name.groups())
            if client >= len(checkpoints[-1]):  # not a state file of this run
                continue
            if round < checkpoints[-1][client] and all(round != last[client] for last in checkpoints):
                with suppress(OSError):  # harmless: nothing reads the file
                    path.unlink()

    def copy_from(self, folder: Path | str, run: str, last: np.ndarray) -> None:
        """Copy every client's last state from another run. Raises UserError.

        folder, run: of the other run; last: the rounds that wrote these states, int (clients,).
        """
        others = ClientStates(folder, self.shapes, run)
        for client, round in enumerate(last.tolist()):
            if round:
                self.write(client, round, others.read(client, round))

    def _path(self, client: int, round: int) -> Path:
        return self.folder / f"{client}_{round}.safetensors"

    def _identity(self, client: int, round: int) -> dict[str, str]:
        return {"run": self.run, "client": str(client), "round": str(round)}
