"""Client state: the arrays that each client keeps from round to round, in append-only files.

Every rank writes the states of its clients one after another into one file per round, and flushes it once, at
the end of its training. A record has a header, the run, the client and the round, and then the arrays,
4 bytes a value. Where a client's last record lies is its `location`: file, offset and CRC-32, which the
reduction brings to rank 0 and the checkpoint stores. Files lie in a folder that all ranks see. Other files in
it are not touched.

A kill or a power cut never loses a record that a checkpoint refers to: its file is flushed before the
reduction, and rank 0 flushes the folder before it writes the checkpoint. Files of rounds after the newest
checkpoint may be lost or incomplete; nothing refers to them, and these rounds are computed again and replace
them. Pruned files that a power cut brings back are pruned again.

A file stays as long as a checkpoint refers to one of its records. When those of the newest locations have
more than twice the bytes of these records, rank 0 copies the records into one new file, `compact`. No rank
holds more than one client's state in memory.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from genfl_mpi.results import disk
from genfl_mpi.util.errors import UserError

HEADER = struct.Struct("<8s16sqq")  # mark, run, client, round
MARK = b"genfl st"
COMPACT = -1  # stands for the rank in the name of a file of many ranks' records
SLACK = 1 << 24  # bytes of old records that never cause a compaction
# Columns of a location: round and rank in the file's name, offset in bytes, CRC-32 of header and arrays.
LOCATION = ("file_round", "file_rank", "offset", "checksum")
NOWHERE = -1  # offset of a client without state


class ClientStates:
    """Read and write the client states of a run.

    shapes: {name: shape} of each client's arrays; run: the run's id; rank: this process, in names of files.

    size: bytes of a record.
    """

    def __init__(
        self, folder: Path | str, shapes: Mapping[str, tuple[int, ...]], run: str, rank: int = 0
    ) -> None:
        self.folder, self.shapes, self.run, self.rank = Path(folder), dict(shapes), run, rank
        self.size = HEADER.size + 4 * sum(int(np.prod(shape)) for shape in self.shapes.values())
        self.key = run.encode()[:16]  # in headers
        self.path: Path | None = None  # of the file that is being written
        self.descriptor, self.end = -1, 0

    def read(self, client: int, round: int, location: Iterable[int]) -> dict[str, np.ndarray]:
        """Return the state that `client` wrote in `round`, {name: float32 array}. Raises UserError.

        location: LOCATION. Round 0 means that the client has no state: its arrays are zeros.
        """
        if round == 0:
            return {name: np.zeros(shape, dtype=np.float32) for name, shape in self.shapes.items()}
        content = self._record(client, round, location)
        arrays, start = {}, HEADER.size
        for name, shape in self.shapes.items():
            count = int(np.prod(shape))
            arrays[name] = np.frombuffer(content, "<f4", count, start).reshape(shape)
            start += 4 * count
        return arrays

    def read_ahead(self, location: Iterable[int]) -> None:
        """Let the system read a record into its cache, while this process goes on."""
        round, rank, offset, _ = map(int, location)
        with suppress(OSError):  # `read` reports it
            descriptor = os.open(self._path(round, rank), os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, offset, self.size, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def write(self, client: int, round: int, arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
        """Append {name: float32 array} to this rank's file of a round. Return (offset, checksum).

        On disk only after `commit`. Raises UserError.
        """
        header = HEADER.pack(MARK, self.key, client, round)
        parts = [np.ascontiguousarray(arrays[name], dtype="<f4").reshape(-1) for name in self.shapes]
        return self._append(self._path(round, self.rank), [header, *(part.data.cast("B") for part in parts)])

    def commit(self) -> None:
        """Flush this rank's file of the round to disk, if it wrote one, and close it. Raises UserError."""
        if self.path is None:
            return
        path, descriptor, self.path, self.descriptor = self.path, self.descriptor, None, -1
        try:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise disk.write_error(path, error) from None

    def flush(self) -> None:
        """Flush the names of all files to disk, before a checkpoint refers to them. Raises UserError."""
        try:
            if self.folder.is_dir():
                disk.flush(self.folder)
        except OSError as error:
            raise disk.write_error(self.folder, error) from None

    def compact(
        self, round: int, trained: np.ndarray, locations: np.ndarray, source: ClientStates | None = None
    ) -> np.ndarray:
        """Copy the records of all clients into one new file of `round`. Return the new locations.

        trained: round that wrote each record, 0 without one, int (clients,); locations: int64 (clients, 4);
        source: states of another run from which they are copied, by default these. Raises UserError.
        """
        path, moved = self._path(round, COMPACT), locations.copy()
        for client in np.flatnonzero(trained).tolist():
            when = int(trained[client])
            content = (source or self)._record(client, when, locations[client])
            header = HEADER.pack(MARK, self.key, client, when)
            moved[client] = round, COMPACT, *self._append(path, [header, content[HEADER.size :]])
        self.commit()
        return moved

    def is_scattered(self, locations: np.ndarray) -> bool:
        """Return whether the files of these locations have more than twice the bytes of their records.

        locations: int64 (clients, 4).
        """
        stored = locations[locations[:, 2] != NOWHERE]
        taken = 0
        for round, rank in _files(stored):
            with suppress(OSError):
                taken += self._path(round, rank).stat().st_size
        return taken > 2 * len(stored) * self.size + SLACK

    def prune(self, round: int, checkpoints: Iterable[np.ndarray]) -> None:
        """Remove files that no checkpoint needs.

        round: of the newest checkpoint, whose later files belong to the current round and are kept.
        checkpoints: the locations of each, int64 (clients, 4).
        """
        needed = {pair for locations in checkpoints for pair in _files(locations)}
        for path in self.folder.glob("*.states"):
            name = re.fullmatch(r"([1-9][0-9]*)_(0|[1-9][0-9]*|compact)", path.stem, re.ASCII)
            if not name or not path.is_file():
                continue
            pair = int(name[1]), COMPACT if name[2] == "compact" else int(name[2])
            if pair[0] <= round and pair not in needed:
                with suppress(OSError):  # harmless: nothing reads the file
                    path.unlink()

    def _append(self, path: Path, parts: list[bytes | memoryview]) -> tuple[int, int]:
        """Append to the file `path`, which the first record of a round creates. Return (offset, checksum)."""
        try:
            if path != self.path:
                self.commit()
                if not self.folder.is_dir():
                    self.folder.mkdir(parents=True, exist_ok=True)
                    disk.flush(self.folder.parent)
                self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                self.path, self.end = path, 0
            disk.check_space(self.folder, self.size)
            offset, checksum = self.end, 0
            for part in parts:
                checksum = zlib.crc32(part, checksum)
                view = memoryview(part)
                while view:
                    view = view[os.write(self.descriptor, view) :]
            self.end += self.size
        except OSError as error:
            raise disk.write_error(path, error) from None
        return offset, checksum

    def _record(self, client: int, round: int, location: Iterable[int]) -> bytes:
        """Read and check a record. Raises UserError."""
        file_round, file_rank, offset, checksum = map(int, location)
        path, fault = self._path(file_round, file_rank), "is damaged"
        content = b""
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(self.size)
        except FileNotFoundError:
            fault = "is missing"
        except OSError as error:
            fault = f"cannot be read: {error.strerror}"
        if len(content) == self.size:
            mark, run, *identity = HEADER.unpack_from(content)
            if mark == MARK and (name := run.rstrip(b"\0")) != self.key:
                fault = f"is of run {name.decode(errors='replace')}, and this is run {self.run}"
            elif mark == MARK and identity == [client, round] and zlib.crc32(content) == checksum:
                return content
        raise UserError(
            f"{path}: the state of client {client} {fault}, so the run cannot continue; "
            "set another `output`, or start over with --fresh"
        )

    def _path(self, round: int, rank: int) -> Path:
        return self.folder / f"{round}_{'compact' if rank == COMPACT else rank}.states"


def _files(locations: np.ndarray) -> set[tuple[int, int]]:
    """Return (round, rank) of the files in which these locations are, int64 (clients, 4)."""
    rounds, ranks = locations[:, 0], locations[:, 1] - COMPACT
    count = int(ranks.max(initial=0)) + 1
    pairs = np.unique(rounds * count + ranks).tolist()  # as one number: sorting rows is slow
    return {(pair // count, pair % count + COMPACT) for pair in pairs}
