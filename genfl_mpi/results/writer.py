"""Write the results file of a run: a row is appended every round, and it is always readable (HDF5 SWMR)."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from genfl_mpi.results import disk, layout, superblock
from genfl_mpi.results.layout import CHECKSUMS, DIMENSIONS, FINISHED, GENERATED, PARTITION, TABLES, VERSION
from genfl_mpi.util.errors import UserError

# Arrays that grow with the number of clients are mostly zeros and ramps.
PACKED: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
CHUNK = 1 << 20  # weights in a chunk
# Tables whose rounds are compared when computed again. The others are measurements, or depend on settings
# that may change between starts.
COMPARED = ("generated", "clients", "rounds")

Columns: TypeAlias = Mapping[str, Any]
Tables: TypeAlias = Mapping[str, Columns]


class Writer:
    """Write the results file of a run.

    Every method raises UserError if it cannot write; data written before stay intact.

    path: of the file, replaced if it exists. texts, environment: attributes of /config and /environment by
    name.

    partition: arrays by name, as in the layout. shapes: of the columns with more than one dimension, without
    the first ({"accuracy_per_class": (classes,)}). size: number of weights. earlier: the tables that the file
    starts with, {"rounds": {column: array}}, when a run continues: those of all finished rounds, including
    rounds after the checkpoint.
    """

    def __init__(
        self,
        path: Path,
        texts: Mapping[str, Any],
        environment: Mapping[str, Any],
        partition: Mapping[str, np.ndarray],
        shapes: Mapping[str, tuple[int, ...]],
        size: int,
        earlier: Tables | None = None,
    ) -> None:
        self.path, self.folder, unfinished = path, path.parent, path.with_name(f".{path.name}.new")
        self.file: Any = None
        self.columns: dict[tuple[str, str], Any] = {}
        self.earlier = earlier or {}
        arrays = [array for columns in self.earlier.values() for array in columns.values()]
        disk.check_space(path.parent, sum(array.nbytes for array in arrays) + 4 * size)
        with self._writing():
            # Created in memory: HDF5 may crash if a write fails while it creates objects in a file.
            content = io.BytesIO()
            self.file = h5py.File(content, "w", libver="v110")
            _create_attributes(self.file, texts, environment)
            _create_partition(self.file, partition)
            self.columns = _create_tables(self.file, shapes)
            _create_weights(self.file, size)
            for table, stored in self.earlier.items():
                self._append(table, stored)
            names = {key: data.name for key, data in self.columns.items()}
            self.file.close()
            # Written under another name, so that the existing file stays intact until this one is complete.
            with unfinished.open("wb") as file:
                file.write(content.getbuffer())
            self.file = h5py.File(unfinished, "r+", libver="v110")
            # Held open: HDF5 also writes when a data set is closed, and h5py can only print a failure there.
            self.columns = {key: self.file[name] for key, name in names.items()}
            self.weights, self.finished = self.file["weights"], self.file["finished"]
            self.file.swmr_mode = True  # from here on no objects are created; data sets only grow
            disk.flush(unfinished)
            os.replace(unfinished, path)
            disk.flush_name(path)

    def append(self, record: Any) -> bool:
        """Append a simulation's `Record`, or compare it with the stored round if there is one.

        Returns whether the round is new. Raises UserError if it differs from the stored round.
        """
        tables = _tables(record)
        if record.round <= len(self.earlier.get("rounds", {}).get("round", ())):
            self._compare(record.round, tables)
            return False
        disk.check_space(self.folder, sum(images.nbytes for _, _, images, _ in record.generated))
        with self._writing():
            for table, columns in tables.items():
                self._append(table, columns)
        return True

    def _compare(self, round: int, tables: Tables) -> None:
        """Raise UserError if a recomputed round differs in any bit of the COMPARED tables."""
        for table in COMPARED:
            before, now = self.earlier[table], tables.get(table, {})
            rows = before["round"] == round
            for name, column in _record_columns(table).items():
                stored, computed = before[name][rows], np.asarray(now.get(name, ()), column.dtype)
                if not column.measured and stored.tobytes() != computed.tobytes():
                    raise UserError(
                        f"{self.path}: round {round} computed again differs from what is stored in "
                        f"{table}/{name}: the processor or the versions of libraries differ from those at "
                        "the first start (see /environment), or a computation went wrong; continue on a "
                        "machine like the first, or start over with --fresh"
                    )

    def finish(self, weights: np.ndarray) -> None:
        """Write the final weights, float32 (size,), and mark the run as finished.

        Flushes both to disk, so that the checkpoint can be removed.
        """
        disk.check_space(self.folder, weights.nbytes)
        with self._writing():
            self.weights[:] = weights
            self._flush()
            self.finished[:] = FINISHED
            self._flush()

    def flush(self) -> None:
        """Flush the file to disk."""
        with self._writing():
            self._flush()

    def close(self) -> None:
        """Flush the file to disk, and close it."""
        self.flush()
        # HDF5 crashes if a write fails while it closes a file. After a flush it only has to write that the
        # file is closed, which `superblock.clear` does below.
        self._redirect()
        self.columns.clear()
        self.weights = self.finished = None
        self.file.close()
        superblock.clear(self.path, lambda: False)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise failed writes in this context as UserError."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            failure = disk.write_error(self.path, error)
            if self.file:
                # HDF5 cannot close a file after a failed write: it raises, crashes, or writes half of the
                # remaining data. So the file is not closed, and writes at the end of the process are
                # discarded.
                self._redirect()
            raise failure from None

    def _redirect(self) -> None:
        """Redirect HDF5's further writes from the file to memory."""
        memory = os.memfd_create("nowhere")
        os.dup2(memory, self.file.id.get_vfd_handle())
        os.close(memory)

    def _flush(self) -> None:
        self.file.flush()
        disk.flush(self.path)

    def _append(self, table: str, columns: Columns) -> None:
        """Append rows to a table, and a row to its checksums."""
        numbering = next(iter(TABLES[table]))
        start = len(self.columns[table, numbering])
        end = start + len(columns["round"])
        if end == start:
            return
        columns = {numbering: np.arange(start, end), **columns}
        columns = {name: np.asarray(columns[name], column.dtype) for name, column in TABLES[table].items()}
        parts = {(table, name): values for name, values in columns.items()}
        parts[CHECKSUMS, table] = np.array([[end, *map(layout.checksum, columns.values())]])
        last = {(table, numbering): parts.pop((table, numbering))}
        # The numbering is written last, so the rows that it counts are complete.
        for part in (parts, last):
            for key, values in part.items():
                data = self.columns[key]
                begin = len(data)
                data.resize(begin + len(values), axis=0)
                data[begin:] = values
            self.file.flush()


def _tables(record: Any) -> Tables:
    """Return the rows of a `Record`, {table: {column: array}}.

    /rounds comes last, so a round that it contains is complete.
    """
    tables: dict[str, Columns] = {}
    if record.generated:
        cells = record.made_in or [-1] * len(record.generated)
        batches = [
            {
                "image": images,
                "fidelity": fidelity,
                "label": batch.label,
                "template": batch.template,
                "seed": batch.seed,
                "prompt": np.array([text.encode() for text in batch.prompt], GENERATED["prompt"].dtype),
                "round": np.full(len(batch), record.round),
                "batch": np.full(len(batch), key.encode()),
                "cell": np.full(len(batch), cell),
            }
            for (key, batch, images, fidelity), cell in zip(record.generated, cells)
        ]
        tables["generated"] = {
            name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]
        }
    tables |= {"clients": record.clients, "hindsight": record.hindsight, "audit": record.audit}
    tables |= (
        record.probes | {"attacks": record.attacks, "personal": record.personal} | {"ranks": record.ranks}
    )
    tables = {table: columns for table, columns in tables.items() if columns}
    return tables | {
        "rounds": {
            name: [value]
            for name, value in {
                "round": record.round,
                "accuracy": record.accuracy,
                "loss": record.loss,
                "accuracy_per_class": record.accuracy_per_class,
                "subset_accuracy": record.subset_accuracy,
                "subset_loss": record.subset_loss,
                **record.columns,
                "device": record.columns["device"].encode(),
            }.items()
        }
    }


def _record_columns(table: str) -> dict[str, layout.Column]:
    """Return the columns of a table without its row numbers, which a `Record` does not have."""
    numbering = next(iter(TABLES[table]))
    return {name: column for name, column in TABLES[table].items() if name == "round" or name != numbering}


def _create_attributes(file: Any, texts: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Create /config and /environment, and the checksum of their attributes."""
    file.attrs["layout_version"] = VERSION
    file.create_group("config").attrs.update(texts)
    file.create_group("environment").attrs.update(environment)
    file.attrs["checksum"] = layout.attributes_checksum(file)


def _create_partition(file: Any, partition: Mapping[str, np.ndarray]) -> None:
    """Create /partition with its arrays."""
    group = file.create_group("partition")
    for name, array in partition.items():
        data = group.create_dataset(name, data=array, **PACKED)
        _describe(data, PARTITION[name], DIMENSIONS[name])


def _create_tables(file: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, str], Any]:
    """Create the growing tables and their checksums, without rows: {(table, column): data set}.

    shapes: {column: shape of a row}, () by default.
    """
    columns = {}
    for table, described in TABLES.items():
        group = file.create_group(table)
        rows = next(iter(described))
        for name, column in described.items():
            shape = shapes.get(name, ())
            chunk = max(1, 4096 // int(np.prod(shape)))
            data = group.create_dataset(
                name, (0, *shape), column.dtype, maxshape=(None, *shape), chunks=(chunk, *shape)
            )
            inner = DIMENSIONS.get(name, ()) if len(shape) == len(DIMENSIONS.get(name, ())) else ("place",)
            _describe(data, column, (rows, *inner))
            columns[table, name] = data
        width = 1 + len(described)
        chunks = (max(1, 4096 // width), width)
        data = file.create_dataset(
            f"{CHECKSUMS}/{table}", (0, width), "i8", maxshape=(None, width), chunks=chunks
        )
        data.attrs["long_name"] = "rows after an append, and CRC-32 of what was added to each column"
        columns[CHECKSUMS, table] = data
    return columns


def _create_weights(file: Any, size: int) -> None:
    """Create /weights, its dimension, and /finished."""
    weights = file.create_dataset("weights", (size,), np.float32, chunks=(min(size, CHUNK),), fletcher32=True)
    weights.attrs["long_name"] = "global weights after the last round"
    # A dimension scale without values: never written, so it takes no space.
    weight = file.create_dataset("weight", (size,), np.float32)
    weight.make_scale("This is a netCDF dimension but not a netCDF variable.")
    weights.dims[0].attach_scale(weight)
    # Not chunked: HDF5 updates a chunk and its checksum in several writes; a kill between them damages both.
    finished = file.create_dataset("finished", data=np.zeros(1, np.uint8))
    finished.make_scale("finished")
    finished.attrs["long_name"] = f"{FINISHED} when all rounds and the weights are stored, 0 before"


def _describe(data: Any, column: layout.Column, dimensions: tuple[str, ...]) -> None:
    """Attach unit, meaning and named dimensions to a data set, for xarray and netCDF."""
    data.attrs.update(units=column.unit, long_name=column.description)
    group, name = data.parent, data.name.rpartition("/")[2]
    for axis, dimension in enumerate(dimensions):
        if dimension == name:
            data.make_scale(dimension)
            continue
        if dimension not in group:
            group.create_dataset(dimension, data=np.arange(data.shape[axis]), **PACKED).make_scale(dimension)
        data.dims[axis].attach_scale(group[dimension])
