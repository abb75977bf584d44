"""Finished runs by what they have in common, so that methods can be compared seed by seed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genfl_mpi.config.loading import flatten, validate
from genfl_mpi.config.settings import is_free
from genfl_mpi.results.reader import array_of, columns_of, config_of, damage, is_finished, open_results
from genfl_mpi.util.errors import UserError

# Runs of a data set must agree in these, or they had other clients, cohorts or models, and are no pairs.
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
    "world",
    "incentive",
)
# In these the runs of a comparison may differ: they are what is compared, or the machine's.
APART = {"seed", "generation.seed", "method", "partition.alpha", "generation.threads", "generation.device"}


@dataclass(frozen=True, order=True)
class Setting:
    """A data set and the skew of its partition; alpha is infinite where the partition has none."""

    data: str
    alpha: float

    def __str__(self):
        return f"{self.data} α {self.alpha:g}" if np.isfinite(self.alpha) else self.data


@dataclass(frozen=True)
class Run:
    """accuracy: float64 (rounds,), in percent; update_cosine: float64 (rounds,); label_histograms: int32 (clients, classes);
    cohorts: int64 (rounds, cohort), the clients that trained; weights: how many the model has."""

    path: Path
    config: dict
    method: str
    seed: int
    setting: Setting
    accuracy: np.ndarray
    update_cosine: np.ndarray
    label_histograms: np.ndarray
    cohorts: np.ndarray
    weights: int

    def resolved(self):
        """The configuration as a `Config`."""
        with open_results(self.path) as file:
            return validate(config_of(file), str(self.path))


class Runs:
    """The finished runs among results files. Raises UserError if they cannot be paired.

    left_out: names of the others.
    """

    def __init__(self, paths):
        self.left_out, self._runs, first_of = [], {}, {}
        for path in paths:
            run = _read(path)
            if run is None:
                self.left_out.append(str(path))
                continue
            for group, keys in (((run.setting.data,), PAIRED), ((run.setting.data, run.method), ())):
                _check_alike(first_of.setdefault(group, run), run, keys)
            key = run.setting, run.method, run.seed
            if key in self._runs:
                raise UserError(
                    f"{self._runs[key].path} and {path} are the same method, data set, alpha and seed; leave one of them out"
                )
            self._runs[key] = run
        if not self._runs:
            raise UserError(
                f"none of the {len(self.left_out)} runs is finished; start their command again, it continues them"
            )
        self.rounds = {run.setting.data: len(run.accuracy) for run in self._runs.values()}

    def __iter__(self):
        return iter(self._runs.values())

    def settings(self):
        return sorted({setting for setting, _, _ in self._runs})

    def of(self, setting, *methods):
        """{seed: the runs of `methods`} in a setting, for every seed that all of them have."""
        seeds = sorted({seed for where, _, seed in self._runs if where == setting})
        found = {seed: [self._runs.get((setting, method, seed)) for method in methods] for seed in seeds}
        return {seed: runs for seed, runs in found.items() if None not in runs}

    def neighbours(self):
        """Pairs of settings of the same data set: an alpha, and the next larger one."""
        settings = self.settings()
        return [(small, large) for small, large in zip(settings, settings[1:]) if small.data == large.data]


def _read(path):
    with open_results(path) as file, damage(path):
        if not is_finished(file):
            return None
        config = flatten(config_of(file))
        skewed = config["partition.scheme"].startswith("dirichlet")
        rounds = columns_of(file, "rounds", ["accuracy", "update_cosine"])
        cohorts = columns_of(file, "clients", ["client"])["client"].reshape(len(rounds["accuracy"]), -1)
        setting = Setting(config["data.name"], config["partition.alpha"] if skewed else np.inf)
        return Run(
            path,
            config,
            config["method"],
            config["seed"],
            setting,
            100 * rounds["accuracy"],
            rounds["update_cosine"],
            array_of(file, "partition/label_histograms"),
            cohorts,
            len(file["weights"]),
        )


def _check_alike(one, other, sections):
    """Raise UserError if two runs differ in one of `sections`; without any, in whatever changes a result."""
    for key in {**one.config, **other.config}:  # a world's keys are only where there is one
        section, value = key.partition(".")[0], one.config.get(key)
        if (
            key in APART
            or section == "runtime"
            or (is_free(key) and key != "rounds")
            or (sections and not {section, key} & set(sections))
        ):
            continue
        if other.config.get(key) != value:
            raise UserError(
                f"{one.path} and {other.path} cannot be compared: {key} is {value} in the one and {other.config.get(key)} in the "
                "other; give runs that differ in data set, alpha, method and seed alone"
            )
