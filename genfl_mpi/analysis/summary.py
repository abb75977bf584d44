"""Runs that differ in nothing but the seed, taken together: for the closing table and the curves."""

import textwrap
from dataclasses import dataclass, field

import numpy as np
import yaml

from genfl_mpi.config import loading
from genfl_mpi.config.settings import METHOD_TITLES
from genfl_mpi.results.reader import columns_of, config_of, damage, open_results
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import WIDTH

# Not a setting by which runs are told apart: the seed, and what the machine or the method decides.
SET_ASIDE = {"seed", "generation.seed", "method"}
# Where these vary, and methods are to be compared, a figure has a panel for each value.
PANELS = {"data.name": "{}", "partition.alpha": "α = {:g}"}
HEAD = "{:<{}} {:<{}} final accuracy (%)  best (%)  seconds  seeds"


@dataclass
class Group:
    """method; panel: data set and alpha, where they vary, as text; settings: what else tells the group from others of the
    method, as text; classes: their names; runs: the columns of /rounds by name, one dict a run."""

    method: str
    panel: str
    settings: str
    classes: list
    runs: list = field(default_factory=list)

    def of(self, column):
        """A column of the runs that have the most rounds, float64 (runs, rounds, ...)."""
        return np.array(
            [run[column] for run in self.runs if len(run["round"]) == self._rounds()], dtype=np.float64
        )

    def behind(self, column):
        """The column of the other runs, float64 (rounds, ...) each."""
        return [run[column].astype(np.float64) for run in self.runs if len(run["round"]) < self._rounds()]

    def outcome(self):
        """Of the runs that have the most rounds: final accuracies, float64 (runs,), and the means of the best ones, in percent,
        and of the seconds."""
        accuracy = 100 * self.of("accuracy")
        return accuracy[:, -1], accuracy.max(1).mean(), self.of("round_seconds").sum(1).mean()

    def _rounds(self):
        return max(len(run["round"]) for run in self.runs)


def groups(paths, tables=()):
    """The `Group`s of the results files `paths`, in their order, and the settings common to all, as a flat dict. tables: others than
    /rounds, whose columns the runs have too, as "table/column". Raises UserError, also for a run without a finished round."""
    runs, configs = [], []
    for path in paths:
        with open_results(path) as file, damage(path):
            configs.append(config_of(file))
            columns = columns_of(file, "rounds")
            for table in tables:
                columns |= {f"{table}/{name}": values for name, values in columns_of(file, table).items()}
            runs.append((columns, yaml.safe_load(file["config"].attrs["class_names"])))
        if not len(columns["round"]):
            raise UserError(f"{path}: no round is finished yet; leave the file out, or wait")
    told, common = distinguished(configs)
    found = {}
    for values, (columns, classes), (panel, settings) in zip(configs, runs, told):
        group = found.setdefault(
            (values["method"], panel, settings),
            Group(METHOD_TITLES[values["method"]], panel, settings, classes),
        )
        group.runs.append(columns)
    return list(found.values()), common


def distinguished(configs):
    """What tells runs apart besides method and seed: (panel, settings) of each, as text, as a `Group` has them; and the
    settings common to all, as a flat dict. configs: their resolved configurations, as nested dicts."""
    flats = [_flat(values) for values in configs]
    common = {key: value for key, value in flats[0].items() if all(flat.get(key) == value for flat in flats)}
    keys = dict.fromkeys("world" if key.startswith("world.") else key for key in loading.varied(configs))
    varied = [
        key for key in keys if key not in SET_ASIDE and (key in PANELS or not _is_methods_own(key, flats))
    ]
    panels = PANELS if "method" not in common else {}
    return [
        (
            ", ".join(text.format(flat[key]) for key, text in panels.items() if key in varied),
            ", ".join(
                PANELS.get(key, f"{_short(key)} {{}}").format(flat[key])
                for key in varied
                if key not in panels
            ),
        )
        for flat in flats
    ], common


def _short(key):
    """A setting's own name, or its section's where that tells more: algorithm, of algorithm.name."""
    section, _, name = key.rpartition(".")
    return section.rpartition(".")[2] if section and name in ("name", "policy") else name


def several(found):
    """Whether one of the groups has several seeds, over which there is a mean and a deviation."""
    return any(len(group.of("round")) > 1 for group in found)


def _flat(values):
    """A configuration as a flat dict, with the world as one setting: what it has besides the default, as text."""
    world = values.get("world")
    if world is not None:
        own = loading.decided(values, [f"world.{key}" for key in loading.flatten(world)])
        world = ", ".join(f"{key.removeprefix('world.')}={value}" for key, value in own.items()) or "default"
    return loading.flatten({**values, "world": world})


def _is_methods_own(key, flats):
    """Whether every method has a value of its own, where there are several: what it was given for being that method."""
    values = {(flat["method"], str(flat[key])) for flat in flats}
    methods = {method for method, _ in values}
    return 1 < len(methods) == len(values)


def table(paths):
    """Lines: a row a group with its mean over seeds, and the standard deviation if there is more than one, of the runs that have
    the most rounds; and what the columns are."""
    found, _ = groups(paths)
    names = [", ".join(filter(None, (group.panel, group.settings))) for group in found]
    first, width = max(11, *(len(group.method) for group in found)), max(map(len, names))
    apart = width > WIDTH - len(
        HEAD.format("method", first, "", 0)
    )  # then a name has lines of its own, above its rows
    width = 0 if apart else width
    yield HEAD.format("method", first, "", width)
    for group, name, above in zip(found, names, [None, *names]):
        if apart and name != above:
            yield from textwrap.wrap(name, WIDTH)
        final, best, seconds = group.outcome()
        spread = f" ± {final.std(ddof=1):4.2f}" if len(final) > 1 else " " * 7
        yield (
            f"{group.method:<{first}} {'' if apart else name:<{width}} {final.mean():11.2f}{spread}  {best:8.2f}"
            f"  {seconds:7.1f}  {len(final):5d}"
        )
    for group, name in zip(found, names):
        if group.method != METHOD_TITLES["aigc"] and not group.of("clients_aggregated").any():
            yield from textwrap.wrap(
                f"{' '.join(filter(None, (group.method, name)))}: no client was heard in any round", WIDTH
            )
    if several(found):
        yield "final: last round, mean ± standard deviation over seeds; best: mean of the best"
    else:
        yield "final: after the last round; best: in the best round"
