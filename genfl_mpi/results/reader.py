"""Read results files: tables, configuration, digests, and the data that a continued run needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import yaml

from genfl_mpi import __version__
from genfl_mpi.results import progress, superblock
from genfl_mpi.results.layout import (
    ADDED,
    ADDED_TABLES,
    CHECKSUMS,
    FINISHED,
    PARTITION,
    TABLES,
    VERSION,
    attributes_checksum,
    checksum,
)
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import file_suggestion, first_line

MISSING = {"i": -1, "f": np.nan, "S": b""}  # values of columns that older files lack, by kind of type
ADVICE = "start over with --fresh, which moves it aside"

Columns: TypeAlias = dict[str, np.ndarray]


def open_results(path: Path | str) -> h5py.File:
    """Open a results file, also of a running or killed run. Raises UserError."""
    path = Path(path)
    if path.is_dir():
        example = next((file.name for file in sorted(path.glob("*.h5"))), "NAME.h5")
        raise UserError(f"{path}: a folder; give one of its results files, for example {path / example}")
    if not path.is_file():
        raise UserError(f"{path}: no such results file{file_suggestion(path, '*.h5')}")
    try:
        file = _open(path)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise UserError(
                f"{path}: another program has the file open for writing; close it in that program"
            ) from None
        raise UserError(f"{path}: not a readable HDF5 file: {first_line(error)}") from None
    try:
        with report_damage(path):
            if reason := _why_unreadable(file):
                raise UserError(f"{path}: {reason}")
            if file.attrs["checksum"] != attributes_checksum(file):
                raise _damaged(file, "an attribute of /config or /environment")
    except UserError:
        file.close()
        raise
    return file


def _why_unreadable(file: h5py.File) -> str | None:
    """Return the reason why an open HDF5 file is not a results file of this layout, or None."""
    version = file.attrs.get("layout_version")
    if version is None:
        return "an HDF5 file, but not a results file of genfl_mpi: no layout_version"
    if version != VERSION:
        packages = file["environment"].attrs.get("packages", "") if "environment" in file else ""
        writer = next(
            (name for name in packages.split(", ") if name.startswith("genfl_mpi ")), "another genfl_mpi"
        )
        advice = (
            "install that version or a newer one to read it"
            if version > VERSION
            else "read it with that version, or compute the run again with this one"
        )
        return (
            f"a results file of layout {version}, written by {writer}; genfl_mpi {__version__} reads layout "
            f"{VERSION}: {advice}"
        )
    missing = {"config", "environment", "partition", CHECKSUMS, *TABLES} - {*ADDED_TABLES, *file}
    return f"the file is damaged: /{min(missing)} is missing; {ADVICE}" if missing else None


def _open(path: Path) -> h5py.File:
    """Open the file; clear the mark of a dead writer. Raises OSError."""
    try:
        return h5py.File(path, "r")
    except OSError:
        found = superblock.read(path)
        if not (
            found and found.is_marked and found.is_complete
        ):  # SWMR readers of a truncated file loop forever
            raise
    # A job is writing the file, or was killed while it did. In that case clear the mark, for other tools.
    superblock.clear(path, lambda: progress.is_running(path))
    try:
        return h5py.File(path, "r")
    except OSError:  # still being written: SWMR allows any number of readers
        return h5py.File(path, "r", libver="latest", swmr=True)


@contextmanager
def report_damage(path: Path | str) -> Iterator[None]:
    """Raise errors of HDF5 and YAML in this context as a UserError about a damaged file."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: the file is damaged: {first_line(error)}; {ADVICE}") from None


def _damaged(file: h5py.File, what: str) -> UserError:
    return UserError(f"{file.filename}: the file is damaged: {what} is corrupt; {ADVICE}")


def find_results(names: Iterable[Path | str]) -> list[Path]:
    """Return the paths of results files. names: files, or folders of files. Raises UserError."""
    found: list[Path] = []
    for path in map(Path, names):
        inside = sorted(path.glob("*.h5")) if path.is_dir() else [path]
        if not inside:
            hint = next(
                (f"; try {below.parent}" for below in sorted(path.glob("*/*.h5")) if _is_results(below)), ""
            )
            raise UserError(f"{path}: no results files in this folder{hint}")
        found += inside
    return list(dict.fromkeys(found))


def _is_results(path: Path) -> bool:
    try:
        open_results(path).close()
    except UserError:
        return False
    return True


def read_config(file: h5py.File) -> dict[str, Any]:
    """Return the resolved configuration, as nested dicts."""
    return yaml.safe_load(file["config"].attrs["resolved"])


def read_run_id(file: h5py.File) -> str:
    """Return the id of the run."""
    return file["config"].attrs["run"]


def is_finished(file: h5py.File) -> bool:
    """Return whether all rounds and the weights are stored. Raises UserError if the mark is damaged."""
    mark = read_array(file, "finished")[0]
    if mark not in (0, FINISHED):
        raise _damaged(file, "finished")
    return bool(mark == FINISHED)


def count_rounds(file: h5py.File) -> int:
    """Return the number of complete rounds."""
    return len(read_columns(file, "rounds", ["round"])["round"])


def read_array(file: h5py.File, name: str) -> np.ndarray:
    """Return a data set that is written only once: `weights`, `finished`, or a column of the partition.

    Raises UserError if it is damaged.
    """
    return _read(file, name)


def _read(file: h5py.File, name: str, rows: int | None = None) -> np.ndarray:
    """Return the first rows of a data set, by default all. Raises UserError if HDF5 reports damage."""
    try:
        return file[name][:rows]
    except (OSError, RuntimeError, KeyError):
        raise _damaged(file, name) from None


def read_columns(file: h5py.File, table: str, names: Iterable[str] | None = None) -> Columns:
    """Return the complete rows of a table's columns, {name: array}; by default of all columns.

    A run that was cut off while writing may have left incomplete rows. table: one of TABLES, or partition.
    Raises UserError if a column is damaged.
    """
    if table == "partition":
        return {name: read_array(file, f"{table}/{name}") for name in names or PARTITION}
    order = list(TABLES[table])
    if table in ADDED_TABLES and table not in file:
        return {name: np.empty(0, TABLES[table][name].dtype) for name in names or order}
    rows = len(file[table][order[0]])  # the numbering, which is written last
    sums = _read(file, f"{CHECKSUMS}/{table}")
    # A failed write may leave a row of zeros, or the row of an append without its numbering.
    sums = sums[(sums[:, 0] > 0) & (sums[:, 0] <= rows)]
    ends = [0, *sums[:, 0].tolist()]
    stored = [name for name in order if name in file[table] or name not in ADDED]  # of which there are sums
    found: Columns = {}
    if ends[-1] != rows or ends != sorted(ends):
        raise _damaged(file, f"{CHECKSUMS}/{table}")
    if len(sums) and not is_finished(file):
        last = _read(file, f"{table}/{order[0]}")[ends[-2] : rows]
        if checksum(last) != sums[-1, 1]:  # the write that was to complete the last append failed
            rows, ends, sums = ends[-2], ends[:-1], sums[:-1]
    for name in order if names is None else names:
        if name in ADDED and name not in file[table]:
            dtype = np.dtype(TABLES[table][name].dtype)
            found[name] = np.full(rows, MISSING[dtype.kind], dtype)
            continue
        array = found[name] = _read(file, f"{table}/{name}", rows)
        found_sums = [checksum(array[start:end]) for start, end in pairwise(ends)]
        if found_sums != sums[:, 1 + stored.index(name)].tolist():
            raise _damaged(file, f"{table}/{name}")
    return found


def _is_missing(array: np.ndarray) -> bool:
    """Return whether a column has only the values that older files' columns get."""
    return bool(
        np.isnan(array).all() if array.dtype.kind == "f" else (array == MISSING[array.dtype.kind]).all()
    )


def read_tables_until(file: h5py.File, round: int) -> dict[str, Columns]:
    """Return the rows of rounds 1 to `round` of all tables: {"rounds": {column: array}, ...}.

    Raises UserError if a table is damaged.
    """
    return rows_until({table: read_columns(file, table) for table in TABLES}, round)


def rows_until(tables: Mapping[str, Columns], round: int) -> dict[str, Columns]:
    """Return the rows of rounds 1 to `round` of tables, {"rounds": {column: array}, ...}."""
    return {
        table: {name: column[columns["round"] <= round] for name, column in columns.items()}
        for table, columns in tables.items()
    }


def digests(path: Path | str) -> tuple[str, str, bool]:
    """Return (weights, results, finished) of a results file.

    weights: SHA-256 of the final weights, which are zero until the run is finished; results: SHA-256 of all
    columns that are not measured (times, ranks, numbers of bytes); finished: whether the run is finished.
    """
    with open_results(path) as file, report_damage(path):
        weights = hashlib.sha256(read_array(file, "weights").tobytes())
        results = hashlib.sha256()
        for table, columns in {"partition": PARTITION, **TABLES}.items():
            names = [name for name, column in columns.items() if not column.measured]
            found = read_columns(file, table, names)
            if table in ADDED_TABLES and not len(found["round"]):
                continue
            for name, array in found.items():
                if name in ADDED and _is_missing(array):
                    continue
                results.update(f"{table}/{name} {array.dtype} {array.shape}\n".encode())
                results.update(np.ascontiguousarray(array).tobytes())
        return weights.hexdigest(), results.hexdigest(), is_finished(file)
