"""Group runs that differ only in the seed, for the closing table and the curves."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from genfl_mpi.config import differences
from genfl_mpi.config.composition import METHOD_TITLES
from genfl_mpi.config.remarks import find_unused
from genfl_mpi.config.settings import Config
from genfl_mpi.results.reader import open_results, read_columns, read_config, report_damage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import WIDTH, counted

METHOD_ORDER = {title: number for number, title in enumerate(METHOD_TITLES.values())}  # in tables and figures
# Settings that do not distinguish groups, or do so by themselves.
SET_ASIDE = {"seed", "generation.seed", "method"}
# If these vary and several methods are compared, a figure has one panel per value.
PANELS = {"data.name": "{}", "partition.alpha": "α = {:g}"}
FOLDERS = ("folder", "client_folders")  # data.name
HEAD = "{:<{}} {:<{}} final accuracy (%)  best (%)  seconds{}  seeds"


@dataclass
class Group:
    """Runs that differ only in the seed.

    panel: data set and alpha, if they vary, as text. settings: what else distinguishes the group from others
    of the method, as text. classes: their names. runs: for each run, the columns of /rounds by name; names:
    of its file; seeds. copies: number of runs whose rounds are copies of an equal run's; forks: of those that
    begin with rounds of another run.
    """

    method: str
    panel: str
    settings: str
    classes: list[str]
    runs: list[dict[str, np.ndarray]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    copies: int = 0
    forks: int = 0

    def column(self, column: str) -> np.ndarray:
        """Return a column of the runs with the most rounds, float64 (runs, rounds, ...)."""
        return np.array(
            [run[column] for run in self.runs if len(run["round"]) == self._rounds()], dtype=np.float64
        )

    def shorter_runs(self, column: str) -> list[np.ndarray]:
        """Return the column of the other runs, float64 (rounds, ...) each."""
        return [run[column].astype(np.float64) for run in self.runs if len(run["round"]) < self._rounds()]

    def evaluated(self) -> np.ndarray:
        """Return the positions of the rounds that were evaluated on the whole test set, int (n,), ascending.

        Of the runs with the most rounds.
        """
        return np.flatnonzero(np.isfinite(self.column("accuracy")).all(0))

    def final_of_seed(self) -> dict[int, float]:
        """Return the final accuracy of each seed, in percent, of the runs with the most rounds."""
        return {
            seed: 100 * last_evaluated(run["accuracy"])
            for seed, run in zip(self.seeds, self.runs)
            if len(run["round"]) == self._rounds()
        }

    def outcome(self) -> tuple[np.ndarray, float, float]:
        """Return final accuracies, float64 (runs,), mean best accuracy, both in percent, and mean seconds.

        Only of the runs with the most rounds. Accuracies are NaN if none of these was evaluated yet.
        """
        accuracy, seconds = 100 * self.column("accuracy"), self.column("round_seconds").sum(1).mean()
        if not len(rounds := self.evaluated()):
            return np.full(len(accuracy), np.nan), np.nan, seconds
        return accuracy[:, rounds[-1]], accuracy[:, rounds].max(1).mean(), seconds

    def testing(self) -> float:
        """Return the share of the runs' seconds in which they evaluated the global model, in percent."""
        return 100 * self.column("evaluate_seconds").sum() / self.column("round_seconds").sum()

    def generating(self) -> tuple[float, bool]:
        """Return the mean seconds that rank 0 generated images, and whether others came from the bank.

        Only of the runs with the most rounds.
        """
        bank = np.nan_to_num(self.column("bank_seconds"))  # NaN: not recorded
        seconds = self.column("generate_seconds") - bank + self.column("generate_ahead_seconds")
        return seconds.sum(1).mean(), bool((self.column("images_from_bank") > 0).any())

    def _rounds(self) -> int:
        return max(len(run["round"]) for run in self.runs)


def last_evaluated(accuracy: np.ndarray) -> float:
    """Return the last value of float64 (rounds,) that is not NaN, or NaN."""
    known = accuracy[np.isfinite(accuracy)]
    return float(known[-1]) if len(known) else np.nan


def mean_of_last(path: Path, accuracy: np.ndarray, count: int) -> float:
    """Return the mean of the last `count` values of float64 (rounds,) that are not NaN.

    path: of the run. Raises UserError if there are none.
    """
    known = accuracy[np.isfinite(accuracy)]
    if not len(known):
        raise UserError(f"{path}: has no evaluated round; wait for it, or leave the file out")
    return float(known[-count:].mean())


def groups(paths: Sequence[str | Path], tables: Sequence[str] = ()) -> tuple[list[Group], dict[str, Any]]:
    """Return the `Group`s of results files, and the settings common to all, as a flat dict.

    The groups are in the order of their panels, and in each panel in that of METHOD_TITLES. tables: beside
    /rounds; the runs have their columns as "table/column". Raises UserError, also for a run without a
    finished round.
    """
    runs, configs = [], []
    for path in paths:
        with open_results(path) as file, report_damage(path):
            configs.append(read_config(file))
            columns = read_columns(file, "rounds")
            for table in tables:
                columns |= {f"{table}/{name}": values for name, values in read_columns(file, table).items()}
            attributes = file["config"].attrs
            origins = "copy_of" in attributes, bool(attributes.get("origin"))
            runs.append((columns, yaml.safe_load(attributes["class_names"]), origins))
        if not len(columns["round"]):
            raise UserError(f"{path}: no round is finished yet; omit the file, or wait")
    names, common = distinguish(configs)
    found: dict[tuple[str, str, str], Group] = {}
    for path, values, (columns, classes, (is_copy, is_fork)), (panel, settings) in zip(
        paths, configs, runs, names
    ):
        group = found.setdefault(
            (values["method"], panel, settings),
            Group(METHOD_TITLES[values["method"]], panel, settings, classes),
        )
        group.runs.append(columns)
        group.copies += is_copy
        group.forks += is_fork
        group.names.append(Path(path).stem)
        group.seeds.append(values["seed"])
    return sorted(found.values(), key=_position_of(found.values())), common


def _position_of(found: Iterable[Group]) -> Callable[[Group], tuple[int, int]]:
    """Return a sorting key: panels as they come, and in each the methods in the order of METHOD_TITLES."""
    panels = list(dict.fromkeys(group.panel for group in found))
    return lambda group: (panels.index(group.panel), METHOD_ORDER[group.method])


def distinguish(
    configs: Sequence[dict[str, Any]],
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Return what distinguishes runs besides method and seed, and the settings common to all, as a flat dict.

    The former as (panel, settings) of each run, like the fields of `Group`. configs: resolved configurations,
    nested dicts.
    """
    flats = [_flat(values) for values in configs]
    common = {key: value for key, value in flats[0].items() if all(flat.get(key) == value for flat in flats)}
    varied = list_varied(configs)
    panels = PANELS if "method" not in common else {}
    in_labels = [key for key in varied if key not in panels]
    used = [_used(in_labels, one) for one in configs]
    kept: dict[tuple[str, str], set[str]] = {}  # the values of the runs with the same label
    for flat, keys in zip(flats, used):
        label = flat["method"], _settings(keys, flat)
        kept.setdefault(label, set()).add(str([flat[key] for key in in_labels]))
    return [
        (
            ", ".join(text.format(flat[key]) for key, text in panels.items() if key in varied),
            _settings(keys if len(kept[flat["method"], _settings(keys, flat)]) == 1 else in_labels, flat),
        )
        for flat, keys in zip(flats, used)
    ], common


def _settings(keys: Sequence[str], flat: Mapping[str, Any]) -> str:
    """Return the part of a run's label that names these settings."""
    return ", ".join(PANELS.get(key, f"{_short(key)} {{}}").format(_shown(flat[key])) for key in keys)


def _used(keys: Sequence[str], values: dict[str, Any]) -> list[str]:
    """Return those of the keys that have an effect in a run. values: its configuration."""
    with suppress(ValidationError):  # the configuration of another version
        unused = find_unused(keys, [Config.model_validate(values)])
        return [key for key in keys if key not in unused]
    return list(keys)


def data_name(flat: Mapping[str, Any]) -> str:
    """Return the data set of flat settings; that of images in folders has the name of the folder."""
    name = str(flat["data.name"])
    return Path(flat["data.root"]).resolve().name if name in FOLDERS and flat.get("data.root") else name


def list_varied(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the settings in which runs differ, besides method and seed and what follows from the method."""
    flats = [_flat(values) for values in configs]
    keys = dict.fromkeys(
        "world" if key.startswith("world.") else key for key in differences.varied_settings(configs)
    )
    return [
        key for key in keys if key not in SET_ASIDE and (key in PANELS or not _follows_method(key, flats))
    ]


def _shown(value: Any) -> Any:
    """Return a setting's value for a label: the elements of a list as text, or none."""
    return (", ".join(map(str, value)) or "none") if isinstance(value, (list, tuple)) else value


def _short(key: str) -> str:
    """Return a key's last part, or its section if that is more specific: algorithm, of algorithm.name."""
    section, _, name = key.rpartition(".")
    return section.rpartition(".")[2] if section and name in ("name", "policy") else name


def has_several_seeds(found: Sequence[Group]) -> bool:
    """Return whether one of the groups has several seeds, and so a mean and a deviation."""
    return any(len(group.column("round")) > 1 for group in found)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as a flat dict, with the world's non-default settings as one text."""
    world = values.get("world")
    if world is not None:
        changed = differences.chosen_settings(values, [f"world.{key}" for key in differences.flatten(world)])
        world = (
            ", ".join(f"{key.removeprefix('world.')}={value}" for key, value in changed.items()) or "default"
        )
    return differences.flatten({**values, "world": world})


def _follows_method(key: str, flats: Sequence[dict[str, Any]]) -> bool:
    """Return whether a setting has one value per method, so that the method's name implies it."""
    values = {(flat["method"], str(flat[key])) for flat in flats}
    methods = {method for method, _ in values}
    return 1 < len(methods) == len(values)


def table(paths: Sequence[str | Path]) -> Iterator[str]:
    """Yield a row per group, with mean and standard deviation over seeds; and a legend.

    Only the runs with the most rounds of each group count."""
    found, _ = groups(paths)
    names = [", ".join(filter(None, (group.panel, group.settings))) for group in found]
    first, width = max(11, *(len(group.method) for group in found)), max(map(len, names))
    generating = [group.generating() if group.column("images").any() else None for group in found]
    column = "  generating" * any(generating)
    # Names that are too long for the table stand on separate lines above its rows.
    apart = width > WIDTH - len(HEAD.format("method", first, "", 0, column))
    width = 0 if apart else width
    spreads = _spreads([group.outcome()[0] for group in found])
    yield HEAD.format("method", first, "", width, column)
    for group, name, above, spread, images in zip(found, names, [None, *names], spreads, generating):
        if apart and name != above:
            yield from textwrap.wrap(name, WIDTH)
        final, best, seconds = group.outcome()
        yield (
            f"{group.method:<{first}} {'' if apart else name:<{width}} {f'{final.mean():.2f}{spread}':>18}"
            f"  {best:8.2f}  {seconds:7.1f}{_generating(images) if column else ''}  {len(final):5d}"
        )
    for group, name in zip(found, names):
        if group.method != METHOD_TITLES["aigc"] and not group.column("clients_aggregated").any():
            about = " ".join(filter(None, (group.method, name)))
            yield from textwrap.wrap(f"{about}: no client was aggregated in any round", WIDTH)
    is_sparse = any(not np.isfinite(group.column("accuracy")).all() for group in found)
    which = "evaluated " * is_sparse
    if has_several_seeds(found):
        about = f"last {which}round, mean ± deviation over seeds; best: highest of all {which}rounds, mean"
        yield from textwrap.wrap(f"final: {about}", WIDTH)
    else:
        yield f"final: after the last {which}round; best: highest of all {which}rounds"
    low, high = (bound(round(group.testing()) for group in found) for bound in (min, max))
    yield f"evaluation: {low if low == high else f'{low} to {high}'} % of the seconds; see evaluation.every"
    if column:
        yield "generating: seconds in which rank 0 generated images, also while it waited"
    if copies := sum(group.copies for group in found):
        yield f"{counted(copies, 'run')} copied from equal runs, with their seconds: see `show`"
    if any(group.forks for group in found):
        yield "seconds of a fork include those of the rounds before it"
    if any(images and images[1] for images in generating):
        yield "*: images also came from the bank, which an earlier run or `generate` filled"


def _generating(images: tuple[float, bool] | None) -> str:
    """Return the cell of a group's `generating`; empty if it has no images."""
    if images is None:
        return " " * 12
    seconds, has_others = images
    return f"  {seconds:9.1f}{'*' if has_others else ' '}"


def _spreads(finals: Sequence[np.ndarray]) -> list[str]:
    """Return " ± deviation" of each array, or as many blanks for a single value, all of one width."""
    texts = [f"{final.std(ddof=1):.2f}" if len(final) > 1 else "" for final in finals]
    width = max(map(len, texts))
    return [f" ± {text:>{width}}" if text else " " * (width and 3 + width) for text in texts]
