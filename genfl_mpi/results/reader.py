"""Reading results files: whole tables, what a continued run needs, digests, and what `show` prints."""

import hashlib
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import yaml

from genfl_mpi import __version__
from genfl_mpi.errors import UserError
from genfl_mpi.results.layout import PARTITION, TABLES, VERSION
from genfl_mpi.wording import first_line


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
            raise UserError(f"{path}: another program has the file open for writing; close it there") from None
        raise UserError(f"{path}: not a readable HDF5 file: {first_line(error)}") from None
    if wrong := _unknown(file):
        file.close()
        raise UserError(f"{path}: {wrong}")
    return file


def _unknown(file):
    """Why an open HDF5 file is none that can be read here, or None."""
    version = file.attrs.get("layout_version")
    if version is None:
        return "an HDF5 file, but not a results file of genfl_mpi: it has no layout_version"
    if version != VERSION:
        packages = file["environment"].attrs.get("packages", "") if "environment" in file else ""
        writer = next((name for name in packages.split(", ") if name.startswith("genfl_mpi ")), "another genfl_mpi")
        advice = "install that or a newer one to read it" if version > VERSION else "read it with that, or compute the run again with this one"
        return f"a results file of layout {version}, written by {writer}; genfl_mpi {__version__} reads layout {VERSION}: {advice}"
    missing = {"config", "partition", *TABLES} - set(file)
    return f"a results file of layout {version} without /{min(missing)}: it is damaged" if missing else None


def _open(path):
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "already open" not in str(error):  # "truncated" say: SWMR's readers would look for what is missing again and again
            raise
    # It is being written, or a killed run left it: one of SWMR's many readers may open it.
    return h5py.File(path, "r", libver="latest", swmr=True)


@contextmanager
def damage(path):
    """What HDF5 or YAML cannot read of the open file `path` is a UserError."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: the file is damaged: {first_line(error)}; "
                        "start over with --fresh, which moves it aside") from None


def find(names):
    """The results files among `names`, files or folders of them, as a list of paths. Raises UserError."""
    found = []
    for path in map(Path, names):
        inside = sorted(path.glob("*.h5")) if path.is_dir() else [path]
        if not inside:
            below = next((f", but in {one.parent}" for one in sorted(path.glob("*/*.h5")) if _is_results(one)), "")
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


def is_finished(file):
    return bool(file["finished"][()])


def columns_of(file, table, names=None):
    """Columns of a table, or of the partition, {name: array}, by default all: the rows that are there whole. A run that was cut off
    while it wrote may have left more of some columns."""
    if table == "partition":  # written at once
        return {name: file[table][name][:] for name in names or PARTITION}
    rows = len(file[table][next(iter(TABLES[table]))])  # the numbering, which grows last
    return {name: file[table][name][:rows] for name in names or TABLES[table]}


def tables_until(file, round):
    """All tables with the rows of rounds 1 to `round`: {"rounds": {column: array}, ...}."""
    tables = {}
    for table in TABLES:
        columns = columns_of(file, table)
        keep = columns["round"] <= round
        tables[table] = {name: column[keep] for name, column in columns.items()}
    return tables


def digests(path):
    """(weights, results, finished): SHA-256 of the final weights, and of all columns that are not clocks, places or bytes;
    and whether the run is finished, without which the weights are still zero."""
    with open_results(path) as file, damage(path):
        weights = hashlib.sha256(file["weights"][:].tobytes())
        results = hashlib.sha256()
        for table, columns in {"partition": PARTITION, **TABLES}.items():
            for name, column in columns.items():
                if not column.measured:
                    array = file[table][name][:]
                    results.update(f"{table}/{name} {array.dtype} {array.shape}\n".encode())
                    results.update(np.ascontiguousarray(array).tobytes())
        return weights.hexdigest(), results.hexdigest(), is_finished(file)
