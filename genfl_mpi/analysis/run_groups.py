"""Group finished runs by what they have in common, to compare methods seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.config.differences import flatten
from genfl_mpi.config.loading import validate
from genfl_mpi.config.settings import is_free
from genfl_mpi.results.reader import (
    is_finished,
    open_results,
    read_array,
    read_columns,
    read_config,
    report_damage,
)
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config


# Runs on a data set must agree in these; otherwise clients, cohorts or models differ and they are no pairs.
PAIRED = (
    "data",
    "partition",
    "misbehaving_clients",
    "clients",
    "cohort",
    "rounds",
    "selection",
    "model",
    "evaluation",
    "training.batch_size",
    "training.epochs",
    "algorithm",
    "attack",
    "defence",
    "world",
    "incentive",
)
# Runs of a method that differ in these are methods of their own, such as "genfl emd": whether a value needs
# no name, and how others are named.
VARIANTS: dict[str, tuple[Callable[[Any], bool], Callable[[Any], str]]] = {
    "algorithm.name": (lambda value: value == "fedavg", str),
    "kappa.policy": (lambda value: value == "fixed", str),
    "composition.use": (lambda value: len(value) == 1, "+".join),
    "generation.checkpoint": (lambda value: ":" not in value, lambda value: value.rpartition(":")[2]),
}
# Runs may differ in these: they are compared, or depend on the machine.
COMPARED = {"seed", "generation.seed", "method", "partition.alpha", "generation.threads", "generation.device"}


@dataclass(frozen=True, order=True)
class Setting:
    """A data set and the skew of its partition; alpha is infinite for partitions without one."""

    data: str
    alpha: float

    def __str__(self) -> str:
        return f"{self.data} α {self.alpha:g}" if np.isfinite(self.alpha) else self.data


@dataclass(frozen=True)
class Run:
    """A finished run.

    accuracy: float64 (rounds,), percent, NaN in rounds without an evaluation. update_cosine: float64
    (rounds,). label_histograms: int32 (clients, classes). cohorts: for each round int64 (cohort,), the
    clients that trained. weights: number of the model's weights.
    """

    path: Path
    config: dict[str, Any]
    method: str
    seed: int
    setting: Setting
    accuracy: np.ndarray
    update_cosine: np.ndarray
    label_histograms: np.ndarray
    cohorts: list[np.ndarray]
    weights: int

    def resolved(self) -> Config:
        """Return the configuration as a `Config`."""
        with open_results(self.path) as file:
            return validate(read_config(file), str(self.path))


class Runs:
    """The finished runs among results files. Raises UserError if they cannot be paired.

    unfinished: paths of the skipped ones. rounds: {data set: rounds of its runs}.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.unfinished: list[str] = []
        self._runs: dict[tuple[Setting, str, int], Run] = {}
        first_of: dict[tuple[str, ...], Run] = {}
        runs = list(map(read_run, paths))
        self.unfinished += [str(path) for path, run in zip(paths, runs) if run is None]
        for run in name_variants([run for run in runs if run]):
            path = run.path
            paired = PAIRED if run.method == run.config["method"] else tuple({*PAIRED} - {"algorithm"})
            groups: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
                ((run.setting.data,), paired),
                ((run.setting.data, run.method), ()),
            )
            for group, keys in groups:
                _check_alike(first_of.setdefault(group, run), run, keys)
            key = run.setting, run.method, run.seed
            if key in self._runs:
                raise UserError(
                    f"{self._runs[key].path} and {path} are the same method, data set, alpha and seed; "
                    "give only one of them"
                )
            self._runs[key] = run
        if not self._runs:
            raise UserError(
                f"none of the {len(self.unfinished)} runs is finished; repeat their command to continue them"
            )
        self.rounds = {run.setting.data: len(run.accuracy) for run in self._runs.values()}

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def settings(self) -> list[Setting]:
        """Return all settings, in order."""
        return sorted({setting for setting, _, _ in self._runs})

    def paired_runs(self, setting: Setting, *methods: str) -> dict[int, list[Run]]:
        """Return {seed: runs of `methods`} in a setting, for every seed that all methods have."""
        seeds = sorted({seed for where, _, seed in self._runs if where == setting})
        found = {seed: [self._runs.get((setting, method, seed)) for method in methods] for seed in seeds}
        return {seed: [run for run in runs if run] for seed, runs in found.items() if None not in runs}

    def neighbours(self) -> list[tuple[Setting, Setting]]:
        """Return pairs of settings of the same data set: an alpha, and the next larger one."""
        settings = self.settings()
        return [(small, large) for small, large in zip(settings, settings[1:]) if small.data == large.data]


def name_variants(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, with the variant's name in `method` where a method has several; plain ones first."""
    named = []
    for run in runs:
        same = [one for one in runs if (one.setting.data, one.method) == (run.setting.data, run.method)]
        words = [
            name_of(run.config[key])
            for key, (is_plain, name_of) in VARIANTS.items()
            if key in run.config
            and len({str(one.config.get(key)) for one in same}) > 1
            and not is_plain(run.config[key])
        ]
        named.append(replace(run, method=" ".join([run.method, *words])))
    return sorted(named, key=lambda run: " " in run.method)


def read_run(path: Path) -> Run | None:
    """Return the run in a results file, or None if it is unfinished."""
    with open_results(path) as file, report_damage(path):
        if not is_finished(file):
            return None
        config = flatten(read_config(file))
        skewed = config["partition.scheme"].startswith("dirichlet")
        rounds = read_columns(file, "rounds", ["accuracy", "update_cosine"])
        clients = read_columns(file, "clients", ["client", "round"])
        starts = np.searchsorted(clients["round"], np.arange(2, len(rounds["accuracy"]) + 1))
        setting = Setting(config["data.name"], config["partition.alpha"] if skewed else np.inf)
        return Run(
            path,
            config,
            config["method"],
            config["seed"],
            setting,
            100 * rounds["accuracy"],
            rounds["update_cosine"],
            read_array(file, "partition/label_histograms"),
            np.split(clients["client"], starts),
            len(file["weights"]),
        )


def is_paired(key: str) -> bool:
    """Return whether runs that differ in a setting are no pairs: partition, cohorts or models differ."""
    return bool({key.partition(".")[0], key} & set(PAIRED))


def _check_alike(one: Run, other: Run, sections: Sequence[str]) -> None:
    """Raise UserError if two runs differ in one of `sections`, or if empty, in any result's setting."""
    for key in {**one.config, **other.config}:  # a world's keys exist only in runs with a world
        section, value = key.partition(".")[0], one.config.get(key)
        if (
            key in COMPARED
            or section == "runtime"
            or (is_free(key) and key != "rounds")
            or (sections and not {section, key} & set(sections))
        ):
            continue
        if other.config.get(key) != value:
            raise UserError(
                f"{one.path} and {other.path} cannot be compared: {key} is {value} in the one and "
                f"{other.config.get(key)} in the other; give runs that differ only in data set, alpha, "
                "method and seed"
            )
