"""The outcome of a search: the best configuration of each method, with the budget that found it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genfl_mpi.config.differences import flat_settings, varied_settings
from genfl_mpi.config.types import as_text
from genfl_mpi.results.reader import is_finished, open_results, read_columns, read_config, report_damage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted


class Candidate(NamedTuple):
    """A finished run of a search."""

    method: str
    number: int
    seed: int
    accuracy: float
    config: dict[str, Any]


def report_lines(paths: Sequence[Path]) -> Iterator[str]:
    """Yield the best configuration of each method among the runs of a search. Raises UserError.

    The best has the highest mean of the final test accuracy over the seeds of the search. A configuration
    that lacks a seed does not count.
    """
    found = [candidate for path in paths if (candidate := _read(path))]
    if not found:
        raise UserError("none of these files is a finished run of a search; give the output of one")
    varied = [
        key for key in varied_settings(one.config for one in found) if key not in ("method", "seed", "search")
    ]
    varied = [key for key in varied if not key.startswith(("composition.", "search."))]
    budgets = {}
    for method in dict.fromkeys(one.method for one in found):
        runs = [one for one in found if one.method == method]
        seeds = {one.seed for one in runs}
        by_number: dict[int, list[Candidate]] = {}
        for one in runs:
            by_number.setdefault(one.number, []).append(one)
        whole = {number: ones for number, ones in by_number.items() if len(ones) == len(seeds)}
        budgets[method] = len(whole), len(seeds)
        means = {number: float(np.mean([one.accuracy for one in ones])) for number, ones in whole.items()}
        number = max(means, key=lambda one: (means[one], -one))
        settings = flat_settings(whole[number][0].config)
        yield (
            f"{method}: search {number}, {100 * means[number]:.2f} % (median of all "
            f"{100 * float(np.median(list(means.values()))):.2f} %); "
            f"{counted(len(whole), 'configuration')} with {counted(len(seeds), 'seed')}"
        )
        yield "  " + " ".join(f"{key}={as_text(settings[key])}" for key in varied if key in settings)
    if len(set(budgets.values())) > 1:
        yield "warning: the methods had different budgets; compare them only after equal ones"
    yield "chosen by test accuracy on the search's seeds: compare methods on other seeds"


def _read(path: Path) -> Candidate | None:
    """Return a finished run of a search, else None."""
    with open_results(path) as file, report_damage(path):
        config = read_config(file)
        number = (config.get("search") or {}).get("number")
        if number is None or not is_finished(file):
            return None
        accuracy = float(read_columns(file, "rounds", ["accuracy"])["accuracy"][-1])
        return Candidate(config["method"], number, config["seed"], accuracy, config)
