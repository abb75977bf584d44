"""Reading results files: whole tables, what a continued run needs, digests, and what `show` prints."""

import hashlib
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import yaml

from genfl_mpi import __version__
from genfl_mpi.results import progress, superblock
from genfl_mpi.results.layout import (
    CHECKSUMS,
    FINISHED,
    PARTITION,
    TABLES,
    VERSION,
    checksum,
    checksum_of_attributes,
)
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

ADVICE = "start over with --fresh, which moves it aside"


def open_results(path):
    """An open h5py.File, also of a run that is still growing or was killed. Raises UserError."""
    path = Path(path)
    if path.is_dir():
        one = next((file.name for file in sorted(path.glob("*.h5"))), "NAME.h5")
        raise UserError(f"{path}: a folder; give one of its results files, {path / one} say")
    if not path.is_file():
        raise UserError(f"{path}: there is no such results file")
    try:
        file = _open(path)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise UserError(
                f"{path}: another program has the file open for writing; close it there"
            ) from None
        raise UserError(f"{path}: not a readable HDF5 file: {first_line(error)}") from None
    try:
        with damage(path):
            if wrong := _unknown(file):
                raise UserError(f"{path}: {wrong}")
            if file.attrs["checksum"] != checksum_of_attributes(file):
                raise _damaged(file, "an attribute of /config or /environment")
    except UserError:
        file.close()
        raise
    return file


def _unknown(file):
    """Why an open HDF5 file is none that can be read here, or None."""
    version = file.attrs.get("layout_version")
    if version is None:
        return "an HDF5 file, but not a results file of genfl_mpi: it has no layout_version"
    if version != VERSION:
        packages = file["environment"].attrs.get("packages", "") if "environment" in file else ""
        writer = next(
            (name for name in packages.split(", ") if name.startswith("genfl_mpi ")), "another genfl_mpi"
        )
        advice = (
            "install that or a newer one to read it"
            if version > VERSION
            else "read it with that, or compute the run again with this one"
        )
        return f"a results file of layout {version}, written by {writer}; genfl_mpi {__version__} reads layout {VERSION}: {advice}"
    missing = {"config", "environment", "partition", CHECKSUMS, *TABLES} - set(file)
    return f"a results file of layout {version} without /{min(missing)}: it is damaged" if missing else None


def _open(path):
    try:
        return h5py.File(path, "r")
    except OSError:
        found = superblock.read(path)
        if not (found and found.marked and found.whole):  # in a truncated file SWMR's readers search for ever
            raise
    # A job writes it, or was killed while it did: then the mark is cleared, so that other tools open the file.
    superblock.clear(path, lambda: progress.is_running(path))
    try:
        return h5py.File(path, "r")
    except OSError:  # one of SWMR's many readers may open it
        return h5py.File(path, "r", libver="latest", swmr=True)


@contextmanager
def damage(path):
    """What HDF5 or YAML cannot read of the open file `path` is a UserError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: the file is damaged: {first_line(error)}; {ADVICE}") from None


def _damaged(file, what):
    return UserError(f"{file.filename}: the file is damaged: {what} is not as it was written; {ADVICE}")


def find(names):
    """The results files among `names`, files or folders of them, as a list of paths. Raises UserError."""
    found = []
    for path in map(Path, names):
        inside = sorted(path.glob("*.h5")) if path.is_dir() else [path]
        if not inside:
            below = next(
                (f", but in {one.parent}" for one in sorted(path.glob("*/*.h5")) if _is_results(one)), ""
            )
            raise UserError(f"{path}: there are no results files in this folder{below}")
        found += inside
    return list(dict.fromkeys(found))


def _is_results(path):
    try:
        open_results(path).close()
    except UserError:
        return False
    return True


def config_of(file):
    """The resolved configuration, as nested dicts."""
    return yaml.safe_load(file["config"].attrs["resolved"])


def run_of(file):
    """The id of the run."""
    return file["config"].attrs["run"]


def is_finished(file):
    """Return whether all rounds and the weights are stored. Raises UserError if the mark is damaged."""
    mark = array_of(file, "finished")[0]
    if mark not in (0, FINISHED):
        raise _damaged(file, "finished")
    return mark == FINISHED


def rounds_of(file):
    """Return the number of rounds that are stored completely."""
    return len(columns_of(file, "rounds", ["round"])["round"])


def array_of(file, name):
    """A data set that was written at once: `weights`, `finished`, or a column of the partition.

    Raises UserError if it is damaged.
    """
    return _read(file, name)


def _read(file, name, rows=None):
    """The first rows of a data set, by default all. Raises UserError if HDF5 finds it damaged."""
    try:
        return file[name][:rows]
    except (OSError, RuntimeError, KeyError):
        raise _damaged(file, name) from None


def columns_of(file, table, names=None):
    """Columns of a table, or of the partition, {name: array}, by default all: the rows that are there whole. A run that was cut off
    while it wrote may have left more of some columns. Raises UserError if one is damaged."""
    if table == "partition":
        return {name: array_of(file, f"{table}/{name}") for name in names or PARTITION}
    order = list(TABLES[table])
    rows = len(file[table][order[0]])  # the numbering, which grows last
    sums = _read(file, f"{CHECKSUMS}/{table}")
    # A write that failed may leave a row of zeros, or one of an append whose numbering was not reached.
    sums = sums[(sums[:, 0] > 0) & (sums[:, 0] <= rows)]
    ends, found = [0, *sums[:, 0].tolist()], {}
    if ends[-1] != rows or ends != sorted(ends):
        raise _damaged(file, f"{CHECKSUMS}/{table}")
    if len(sums) and not is_finished(file):
        last = _read(file, f"{table}/{order[0]}")[ends[-2] : rows]
        if checksum(last) != sums[-1, 1]:  # the write that was to complete the last append failed
            rows, ends, sums = ends[-2], ends[:-1], sums[:-1]
    for name in order if names is None else names:
        array = found[name] = _read(file, f"{table}/{name}", rows)
        found_sums = [checksum(array[start:end]) for start, end in pairwise(ends)]
        if found_sums != sums[:, 1 + order.index(name)].tolist():
            raise _damaged(file, f"{table}/{name}")
    return found


def tables_until(file, round):
    """All tables with the rows of rounds 1 to `round`: {"rounds": {column: array}, ...}.

    Raises UserError if one is damaged.
    """
    return until({table: columns_of(file, table) for table in TABLES}, round)


def until(tables, round):
    """The rows of rounds 1 to `round` of tables, {"rounds": {column: array}, ...}."""
    return {
        table: {name: column[columns["round"] <= round] for name, column in columns.items()}
        for table, columns in tables.items()
    }


def digests(path):
    """(weights, results, finished): SHA-256 of the final weights, and of all columns that are not clocks, places or bytes;
    and whether the run is finished, without which the weights are still zero."""
    with open_results(path) as file, damage(path):
        weights = hashlib.sha256(array_of(file, "weights").tobytes())
        results = hashlib.sha256()
        for table, columns in {"partition": PARTITION, **TABLES}.items():
            names = [name for name, column in columns.items() if not column.measured]
            for name, array in columns_of(file, table, names).items():
                results.update(f"{table}/{name} {array.dtype} {array.shape}\n".encode())
                results.update(np.ascontiguousarray(array).tobytes())
        return weights.hexdigest(), results.hexdigest(), is_finished(file)
