"""The results file of a run: created whole, then grown by a row a round, readable at any moment (HDF5 SWMR)."""

import io
import os
from contextlib import contextmanager

import h5py
import numpy as np

from genfl_mpi.results import disk, layout, superblock
from genfl_mpi.results.layout import CHECKSUMS, DIMENSIONS, FINISHED, GENERATED, PARTITION, TABLES, VERSION
from genfl_mpi.util.errors import UserError

# What grows with the clients is mostly zeros and ramps.
PACKED = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
CHUNK = 1 << 20  # weights in a chunk
# What a run consists of. Other tables are measurements, or observations by settings that may change between
# starts.
COMPARED = ("generated", "clients", "rounds")


class Writer:
    """What cannot be written is a UserError, of every method; what was written before stays.

    path: of the file, replaced if it exists. texts, environment: dicts of attributes of /config and /environment.

    partition: arrays by name, as in the layout. shapes: of the columns with more dimensions than one, without the first
    ({"accuracy_per_class": (classes,)}). size: number of weights. earlier: the tables that the file begins with,
    {"rounds": {column: array}}, when a run is continued: those of all finished rounds, also after the
    checkpoint.
    """

    def __init__(self, path, texts, environment, partition, shapes, size, earlier=None):
        self.path, self.folder, unfinished = path, path.parent, path.with_name(f".{path.name}.new")
        self.file, self.columns, self.earlier = None, {}, earlier or {}
        arrays = [array for columns in self.earlier.values() for array in columns.values()]
        disk.ensure(path.parent, sum(array.nbytes for array in arrays) + 4 * size)
        with self._writing():
            # Created in memory: HDF5 may crash when it cannot write while it names things in a file.
            content = io.BytesIO()
            self.file = h5py.File(content, "w", libver="v110")
            self.file.attrs["layout_version"] = VERSION
            self.file.create_group("config").attrs.update(texts)
            self.file.create_group("environment").attrs.update(environment)
            self.file.attrs["checksum"] = layout.checksum_of_attributes(self.file)
            group = self.file.create_group("partition")
            for name, array in partition.items():
                data = group.create_dataset(name, data=array, **PACKED)
                _describe(data, PARTITION[name], DIMENSIONS[name])
            for table, columns in TABLES.items():
                group = self.file.create_group(table)
                rows = next(iter(columns))
                for name, column in columns.items():
                    shape = shapes.get(name, ())
                    chunk = max(1, 4096 // int(np.prod(shape)))
                    data = group.create_dataset(
                        name, (0, *shape), column.dtype, maxshape=(None, *shape), chunks=(chunk, *shape)
                    )
                    _describe(data, column, (rows, *DIMENSIONS.get(name, ())))
                    self.columns[table, name] = data
                width = 1 + len(columns)
                chunks = (max(1, 4096 // width), width)
                data = self.file.create_dataset(
                    f"{CHECKSUMS}/{table}", (0, width), "i8", maxshape=(None, width), chunks=chunks
                )
                data.attrs["long_name"] = "rows after an append, and CRC-32 of what was added to each column"
                self.columns[CHECKSUMS, table] = data
            chunks = (min(size, CHUNK),)
            weights = self.file.create_dataset("weights", (size,), np.float32, chunks=chunks, fletcher32=True)
            weights.attrs["long_name"] = "global weights after the last round"
            # A dimension without values of its own: never written, it takes no space.
            weight = self.file.create_dataset("weight", (size,), np.float32)
            weight.make_scale("This is a netCDF dimension but not a netCDF variable.")
            weights.dims[0].attach_scale(weight)
            # Not chunked: HDF5 changes a chunk and its checksum in several writes, and a kill between them damages both.
            finished = self.file.create_dataset("finished", data=np.zeros(1, np.uint8))
            finished.make_scale("finished")
            finished.attrs["long_name"] = f"{FINISHED} when all rounds and the weights are stored, 0 before"
            for table, columns in self.earlier.items():
                self._append(table, columns)
            names = {key: data.name for key, data in self.columns.items()}
            self.file.close()
            # Written under another name, so that a file to be continued stays whole until this one is.
            with unfinished.open("wb") as file:
                file.write(content.getbuffer())
            self.file = h5py.File(unfinished, "r+", libver="v110")
            # Held open: HDF5 writes when a data set is closed, too, and h5py could only print then that it failed.
            self.columns = {key: self.file[name] for key, name in names.items()}
            self.weights, self.finished = self.file["weights"], self.file["finished"]
            self.file.swmr_mode = True  # from here on nothing new is named, data only grow
            disk.flush(unfinished)
            os.replace(unfinished, path)
            disk.flush_name(path)

    def append(self, record):
        """Add a simulation's `Record`; of a round that is stored already, compare it with what is stored
        instead. Returns whether the round is new. Raises UserError if it differs from the stored one."""
        tables = _tables(record)
        if record.round <= len(self.earlier.get("rounds", {}).get("round", ())):
            self._compare(record.round, tables)
            return False
        disk.ensure(self.folder, sum(images.nbytes for _, _, images, _ in record.generated))
        with self._writing():
            for table, columns in tables.items():
                self._append(table, columns)
        return True

    def _compare(self, round, tables):
        """Raise UserError if a round that was computed again has other bits in one of the COMPARED tables."""
        for table in COMPARED:
            before, now = self.earlier[table], tables.get(table, {})
            rows = before["round"] == round
            for name, column in _own(table).items():
                stored, computed = before[name][rows], np.asarray(now.get(name, ()), column.dtype)
                if not column.measured and stored.tobytes() != computed.tobytes():
                    raise UserError(
                        f"{self.path}: round {round} computed again differs from what is stored in {table}/{name}: "
                        "the processor or the versions of libraries are others than the run began with (see "
                        "/environment), or a computation went wrong. Continue on a machine like the first, or "
                        "start over with --fresh"
                    )

    def finish(self, weights):
        """Add the final weights, float32 (size,), and declare the run finished: on the disk, as its checkpoint may
        be removed now."""
        disk.ensure(self.folder, weights.nbytes)
        with self._writing():
            self.weights[:] = weights
            self._flush()
            self.finished[:] = FINISHED
            self._flush()

    def flush(self):
        """Bring to the disk what was added."""
        with self._writing():
            self._flush()

    def close(self):
        """Close the file, whole on the disk."""
        self.flush()
        # HDF5 crashes when it cannot write while it closes a file, and after a flush it has nothing more to say
        # than that the file is closed.
        self._redirect()
        self.columns.clear()
        self.weights = self.finished = None
        self.file.close()
        superblock.clear(self.path, lambda: False)

    @contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, RuntimeError) as error:
            failed = disk.failed(self.path, error)
            if self.file:
                # HDF5 cannot close a file that it could not write: it complains, crashes, or writes half of what is
                # left. So it is not asked to, and what it tries at the end of the process goes nowhere.
                self._redirect()
            raise failed from None

    def _redirect(self):
        """Let HDF5 write to memory from now on, not to the file."""
        memory = os.memfd_create("nowhere")
        os.dup2(memory, self.file.id.get_vfd_handle())
        os.close(memory)

    def _flush(self):
        self.file.flush()
        disk.flush(self.path)

    def _append(self, table, columns):
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
        # The numbering grows last: a row that it counts is there whole.
        for part in (parts, last):
            for key, values in part.items():
                data = self.columns[key]
                begin = len(data)
                data.resize(begin + len(values), axis=0)
                data[begin:] = values
            self.file.flush()


def _tables(record):
    """The rows of a `Record`, {table: {column: array}}. /rounds comes last: a round that is there is there
    whole."""
    tables = {}
    if record.generated:
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
            }
            for key, batch, images, fidelity in record.generated
        ]
        tables["generated"] = {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}
    tables |= {"clients": record.clients, "hindsight": record.hindsight, "audit": record.audit}
    tables |= record.probes | {"ranks": record.ranks}
    tables = {table: columns for table, columns in tables.items() if columns}
    return tables | {
        "rounds": {
            name: [value]
            for name, value in {
                "round": record.round,
                "accuracy": record.accuracy,
                "loss": record.loss,
                "accuracy_per_class": record.accuracy_per_class,
                **record.columns,
            }.items()
        }
    }


def _own(table):
    """The columns of a table without the numbers of its rows, which a `Record` does not have."""
    numbering = next(iter(TABLES[table]))
    return {name: column for name, column in TABLES[table].items() if name == "round" or name != numbering}


def _describe(data, column, dimensions):
    """Units, meaning and named dimensions, by which xarray and netCDF know what an array is."""
    data.attrs.update(units=column.unit, long_name=column.about)
    group, name = data.parent, data.name.rpartition("/")[2]
    for axis, dimension in enumerate(dimensions):
        if dimension == name:
            data.make_scale(dimension)
            continue
        if dimension not in group:
            group.create_dataset(dimension, data=np.arange(data.shape[axis]), **PACKED).make_scale(dimension)
        data.dims[axis].attach_scale(group[dimension])
