"""Export results to other tools: pandas and xarray, CSV, TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from genfl_mpi.config import differences
from genfl_mpi.results.layout import DIMENSIONS, PARTITION, TABLES
from genfl_mpi.results.reader import find_results, open_results, read_columns, read_config, report_damage
from genfl_mpi.results.scalars import scalars
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

    import pandas
    import xarray


ALL = (*TABLES, "partition")


def read_results(
    names: str | Path | Iterable[str | Path], table: str = "rounds", to: str = "pandas"
) -> pandas.DataFrame | xarray.Dataset:
    """Return a table of all runs among `names`. Raises UserError.

    names: a results file, a folder of them, or a list of these. table: any table of a results file, for
    example rounds, clients or generated; or partition. to="pandas": a tidy DataFrame with one row per round
    (client and round, image, client) of each run, and the columns run, method, seed and every setting in
    which the runs differ; columns with one value per class become one column per class; images are omitted.
    to="xarray": a Dataset along the dimension `run`, whose coordinates are the same settings, with units and
    meanings as attributes; shorter runs are padded with NaN.
    """
    if table not in ALL:
        raise UserError(f"unknown table {table!r}; the tables are {', '.join(ALL)}")
    paths = find_results([names] if isinstance(names, (str, Path)) else names)
    if to == "pandas":
        module = _import_extra("pandas", "tables")
        return module.concat(
            [module.DataFrame(columns) for columns in tidy_columns(paths, table)], ignore_index=True
        )
    if to != "xarray":
        raise UserError(f"unknown to={to!r}; results are read to pandas or to xarray")
    module = _import_extra("xarray", "tables")
    settings = distinguish_runs(paths)
    runs = [_dataset(module, path, table, settings[0]) for path in paths]
    try:
        together = module.concat(
            runs,
            "run",
            data_vars="all",
            coords="minimal",
            compat="override",
            join="outer",
            combine_attrs="override",
        )
    except module.AlignmentError:
        raise UserError(
            f"{table}: runs with different numbers of clients or classes have no common array; read them "
            "separately, or to pandas"
        ) from None
    return together.assign_coords({name: ("run", [one[name] for one in settings]) for name in settings[0]})


def distinguish_runs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what distinguishes runs: dicts of run (file name), method, seed, and differing settings."""
    configs = []
    for path in paths:
        with open_results(path) as file, report_damage(path):
            configs.append(read_config(file))
    differing = [key for key in differences.varied_settings(configs) if key not in ("method", "seed")]
    return [
        {"run": path.stem, "method": flat["method"], "seed": flat["seed"]}
        | {key: flat.get(key) for key in differing}
        for path, flat in zip(paths, map(differences.flat_settings, configs))
    ]


def tidy_columns(paths: Sequence[Path], table: str) -> Iterator[dict[str, np.ndarray]]:
    """Yield {column: array (rows,)} for each run, with the run's settings first."""
    for path, settings in zip(paths, distinguish_runs(paths)):
        columns, names = _columns(path, table)
        rows = len(next(iter(columns.values())))
        found = {
            name: np.full(rows, str(value) if isinstance(value, (list, type(None))) else value)
            for name, value in settings.items()
        }
        for name, values in columns.items():
            found |= (
                {_unambiguous(table, name, settings): values}
                if values.ndim == 1
                else {f"{name}[{one}]": values[:, i] for i, one in enumerate(names)}
            )
        yield found


def _columns(path: Path, table: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return ({column: array}, class names) of a table of a results file, without images."""
    with open_results(path) as file, report_damage(path):
        names = yaml.safe_load(file["config"].attrs["class_names"])
        if table == "partition":
            columns = read_columns(file, table)
            samples = np.diff(columns.pop("pointers"))
            return {"client": np.arange(len(samples)), "samples": samples, **columns}, names
        columns = read_columns(file, table, [name for name in TABLES[table] if name != "image"])
        return {name: _decoded(values) for name, values in columns.items()}, names


def _decoded(values: np.ndarray) -> np.ndarray:
    """Return a column with its texts as str objects instead of UTF-8 bytes."""
    return np.array([text.decode() for text in values], object) if values.dtype.kind == "S" else values


def _dataset(module: ModuleType, path: Path, table: str, settings: dict[str, Any]) -> xarray.Dataset:
    """Return a table of one run. module: xarray."""
    columns = PARTITION if table == "partition" else TABLES[table]
    with open_results(path) as file, report_damage(path):
        names = [name for name in columns if name != "image"]
        values = read_columns(file, table, names)
    rows = () if table == "partition" else (next(iter(columns)),)
    return module.Dataset(
        {
            _unambiguous(table, name, settings): (
                (*rows, *DIMENSIONS.get(name, ())) if name not in rows else rows,
                _decoded(values[name]),
                {"units": columns[name].unit, "long_name": columns[name].description},
            )
            for name in names
        }
    )


def _unambiguous(table: str, name: str, settings: dict[str, Any]) -> str:
    """Return a column's name that differs from the settings' names: an image's seed is not the run's."""
    return f"{table}.{name}" if name in settings else name


def write_csv(path: str | Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write tuples as lines of a CSV file. Raises UserError."""
    try:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def rows(paths: Sequence[Path], table: str) -> Iterator[tuple[Any, ...]]:
    """Yield a table of all runs as tuples, after a header. Raises UserError."""
    header = None
    for columns in tidy_columns(paths, table):
        if header is None:
            yield (header := tuple(columns))
        if tuple(columns) != header:
            raise UserError(
                "the runs have different classes, so their columns differ; export one data set at a time"
            )
        yield from zip(*(values.tolist() for values in columns.values()))


def to_tensorboard(paths: Sequence[Path], folder: str | Path) -> None:
    """Write each run's rounds as scalars into folder/RUN, for TensorBoard. Raises UserError."""
    _import_extra("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for path in paths:
        columns, names = _columns(path, "rounds")
        with SummaryWriter(str(Path(folder) / path.stem)) as writer:
            for i, round in enumerate(columns.pop("round").tolist()):
                row = {name: values[i] for name, values in columns.items()}
                for tag, value in scalars(row, names):
                    writer.add_scalar(tag, value, round)


def _import_extra(package: str, extra: str) -> ModuleType:
    """Import a package that only an extra installs. Raises UserError."""
    try:
        return import_module(package)
    except ImportError:
        raise UserError(f"the package {package} is not installed; pip install 'genfl_mpi[{extra}]'") from None
