"""The results file of a run: created whole, then grown by a row a round, readable at any moment (HDF5 SWMR)."""

import io
import os
from contextlib import contextmanager

import h5py
import numpy as np

from genfl_mpi.results import space
from genfl_mpi.results.layout import DIMENSIONS, GENERATED, PARTITION, TABLES, VERSION

PACKED = {"compression": "gzip", "compression_opts": 1, "shuffle": True}  # what grows with the clients is mostly zeros and ramps


class Writer:
    """What cannot be written is a UserError, of every method; what was written before stays.

    path: of the file, replaced if it exists. texts, environment: dicts of attributes of /config and /environment.

    partition: arrays by name, as in the layout. shapes: of the columns with more dimensions than one, without the first
    ({"accuracy_per_class": (classes,)}). size: number of weights. earlier: the tables that the file begins with,
    {"rounds": {column: array}}, when a run is continued.
    """

    def __init__(self, path, texts, environment, partition, shapes, size, earlier=None):
        self.path, self.folder, unfinished = path, path.parent, path.with_name(f".{path.name}.new")
        self.file, self.columns = None, {}
        space.ensure(path.parent, sum(array.nbytes for columns in (earlier or {}).values() for array in columns.values()) + 4 * size)
        with self._writing():
            # Created in memory: HDF5 may crash when it cannot write while it names things in a file.
            content = io.BytesIO()
            self.file = h5py.File(content, "w", libver="v110")
            self.file.attrs["layout_version"] = VERSION
            self.file.create_group("config").attrs.update(texts)
            self.file.create_group("environment").attrs.update(environment)
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
                    data = group.create_dataset(name, (0, *shape), column.dtype, maxshape=(None, *shape), chunks=(chunk, *shape))
                    _describe(data, column, (rows, *DIMENSIONS.get(name, ())))
                    self.columns[table, name] = data
            weights = self.file.create_dataset("weights", (size,), np.float32)
            weights.attrs["long_name"] = "global weights after the last round"
            # A dimension without values of its own: never written, it takes no space.
            weight = self.file.create_dataset("weight", (size,), np.float32)
            weight.make_scale("This is a netCDF dimension but not a netCDF variable.")
            weights.dims[0].attach_scale(weight)
            self.file.create_dataset("finished", (), np.uint8).attrs["long_name"] = "1 when all rounds and the weights are here"
            for table, columns in (earlier or {}).items():
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
            space.flush(unfinished)
            os.replace(unfinished, path)
            space.flush_name(path)

    def append(self, record):
        """Add a simulation's `Record`."""
        space.ensure(self.folder, sum(images.nbytes for _, _, images, _ in record.generated))
        with self._writing():
            self._append_record(record)

    def _append_record(self, record):
        for key, batch, images, fidelity in record.generated:
            self._append("generated", {
                "image": images, "fidelity": fidelity, "label": batch.label, "template": batch.template, "seed": batch.seed,
                "prompt": np.array([text.encode() for text in batch.prompt], GENERATED["prompt"].dtype),
                "round": np.full(len(batch), record.round), "batch": np.full(len(batch), key.encode())})
        if record.clients:
            self._append("clients", record.clients)
        if record.laboratory:
            self._append("laboratory", record.laboratory)
        if record.audit:
            self._append("audit", record.audit)
        for table, columns in record.probes.items():
            self._append(table, columns)
        self._append("ranks", record.ranks)
        # The round's row comes last: a round that is there is there whole.
        self._append("rounds", {name: [value] for name, value in {
            "round": record.round, "accuracy": record.accuracy, "loss": record.loss,
            "accuracy_per_class": record.accuracy_per_class, **record.columns}.items()})

    def finish(self, weights):
        """Add the final weights, float32 (size,), and declare the run finished: on the disk, as its checkpoint may
        be removed now."""
        space.ensure(self.folder, weights.nbytes)
        with self._writing():
            self.weights[:] = weights
            self._flush()
            self.finished[()] = 1
            self._flush()

    def flush(self):
        """Bring to the disk what was added."""
        with self._writing():
            self._flush()

    def close(self):
        with self._writing():
            self.columns.clear()
            self.weights = self.finished = None
            self.file.close()

    @contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, RuntimeError) as error:
            failed = space.failed(self.path, error)
            if self.file:
                # HDF5 cannot close a file that it could not write: it complains, crashes, or writes half of what is left. So
                # it is not asked to, and what it tries at the end of the process goes nowhere.
                os.dup2(os.memfd_create("nowhere"), self.file.id.get_vfd_handle())
            raise failed from None

    def _flush(self):
        self.file.flush()
        space.flush(self.path)

    def _append(self, table, columns):
        numbering = next(iter(TABLES[table]))
        start = len(self.columns[table, numbering])
        end = start + len(next(iter(columns.values())))
        columns = {numbering: np.arange(start, end), **columns}
        # The numbering grows last: a row that it counts is there whole.
        for part in (columns.keys() - {numbering}, {numbering}):
            for name in part:
                data = self.columns[table, name]
                data.resize(end, axis=0)
                data[start:] = columns[name]
            self.file.flush()


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
