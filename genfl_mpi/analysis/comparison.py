"""Compare two groups of runs, A and B: their settings, and their results paired by seed."""

from __future__ import annotations

import glob
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genfl_mpi.analysis import claims
from genfl_mpi.analysis.run_groups import Run, is_paired, read_run
from genfl_mpi.config import differences, loading
from genfl_mpi.results import reader
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import WIDTH, counted

TARGET = 0.9  # of A's accuracy in the last rounds
LABEL, NUMBER = 36, 8  # columns of the table of results
# Of a pair (run of A, run of B): the values that are compared.
MEASURES: dict[str, Callable[[Run, Run], tuple[float, float]]] = {
    f"{claims.AT_THE_END} (%)": lambda a, b: (claims.final(a), claims.final(b)),
    f"first {100 * claims.EARLY_SHARE:.0f} % of rounds: accuracy (%)": lambda a, b: (
        claims.early(a),
        claims.early(b),
    ),
    "mean accuracy over all rounds (%)": lambda a, b: (
        claims.mean_of_evaluated(a.accuracy),
        claims.mean_of_evaluated(b.accuracy),
    ),
    "accuracy of the best round (%)": lambda a, b: (np.nanmax(a.accuracy), np.nanmax(b.accuracy)),
    f"rounds to {TARGET:g} of A's final accuracy": lambda a, b: (
        claims.rounds_to(a, target := TARGET * claims.smoothed(a)[-1]),
        claims.rounds_to(b, target),
    ),
}


@dataclass(frozen=True)
class Comparison:
    """Two groups of runs.

    differing: (key, value of A, value of B) of each setting in which the groups differ. pairs: {values of the
    settings that vary inside both groups: pairs of runs with equal seeds}. unpaired: names of runs without a
    counterpart; unfinished: of runs that are not finished.
    """

    differing: list[tuple[str, Any, Any]]
    pairs: dict[str, list[tuple[Run, Run]]]
    unpaired: list[str]
    unfinished: list[str]


def find(name: str) -> list[Path]:
    """Return the results files of a group: a file, a folder, or a pattern such as "fig5/genfl_*".

    A pattern skips other files. Raises UserError.
    """
    if Path(name).exists() or not glob.has_magic(name):
        return reader.find_results([name])
    found = sorted(path for path in map(Path, glob.glob(name)) if path.suffix == ".h5")
    if not found:
        raise UserError(f"{name}: matches no results file, which ends in .h5; check the pattern")
    return found


def compare(first: Sequence[Path], second: Sequence[Path]) -> Comparison:
    """Compare the finished runs of two groups of results files. Raises UserError if no two can be paired."""
    if both := set(first) & set(second):
        raise UserError(f"{min(both)}: is in both groups; compare a run with others")
    groups, unfinished = [], []
    for name, paths in (("A", first), ("B", second)):
        runs = [run for run in map(read_run, paths) if run]
        unfinished += sorted({path.stem for path in paths} - {run.path.stem for run in runs})
        if not runs:
            raise UserError(
                f"{name}: none of {counted(len(paths), 'run')} is finished; repeat their command to continue "
                "them"
            )
        groups.append(runs)
    differing, shared = _split_settings(*groups)
    places = [_by_place(name, runs, shared) for name, runs in zip("AB", groups)]
    pairs: dict[str, list[tuple[Run, Run]]] = {}
    for place, run in places[0].items():
        if place in places[1]:
            about = ", ".join(f"{key}={value}" for key, value in zip(shared, place[1:]))
            pairs.setdefault(about, []).append((run, places[1][place]))
    if not pairs:
        raise UserError(
            "no run of A has the seed"
            + (f" and {', '.join(shared)}" if shared else "")
            + " of a run of B, so there are no pairs; give runs with the same seeds"
        )
    unpaired = [
        run.path.stem
        for own, others in (places, places[::-1])
        for place, run in own.items()
        if place not in others
    ]
    return Comparison(differing, pairs, unpaired, unfinished)


def _split_settings(first: list[Run], second: list[Run]) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Return the settings in which two groups differ, and the keys of those that vary inside both of them."""
    nested = [loading.nested(run.config) for run in (*first, *second)]
    flat = {id(run): differences.flat_settings(values) for run, values in zip((*first, *second), nested)}
    keys = [key for key in differences.varied_settings(nested) if key != "seed"]
    if len({len(run.accuracy) for run in (*first, *second)}) > 1:
        keys.append("rounds")  # no round depends on their number
    differing: list[tuple[str, Any, Any]] = []
    shared = []
    for key in keys:
        one, other = ({str(flat[id(run)].get(key)): None for run in group} for group in (first, second))
        if len(one) == len(other) == 1:
            differing.append((key, next(iter(one)), next(iter(other))))
        elif set(one) & set(other):
            shared.append(key)
        else:
            name, several = ("A", one) if len(one) > 1 else ("B", other)
            raise UserError(
                f"{name} has runs with {key}={' and '.join(sorted(several))}, and the other group has none "
                f"of them; give runs with one {key} in each group, for example as a pattern: 'FOLDER/genfl_*'"
            )
    return differing, shared


def _by_place(name: str, runs: Sequence[Run], shared: Sequence[str]) -> dict[tuple[Any, ...], Run]:
    """Return runs by (seed, values of `shared`), in order. Raises UserError if two have the same."""
    found: dict[tuple[Any, ...], Run] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        place = run.seed, *(str(run.config.get(key)) for key in shared)
        if place in found:
            raise UserError(
                f"{found[place].path} and {run.path} in group {name} have the same seed and settings, apart "
                "from what the other group lacks; give one of them"
            )
        found[place] = run
    return found


def report_lines(names: Sequence[str]) -> Iterator[str]:
    """Yield the comparison of two groups as lines of at most WIDTH columns. names: as for `find`."""
    if len(names) != 2:
        raise UserError(
            f"compare needs two groups of runs, not {len(names)}; give files, folders or patterns in quotes: "
            "compare 'FOLDER/fedavg_*' 'FOLDER/genfl_*'"
        )
    found = [find(name) for name in names]
    compared = compare(*found)
    for letter, name, paths in zip("AB", names, found):
        yield from _wrapped(f"{letter}  {name}: {counted(len(paths), 'run')}")
    yield ""
    yield from _settings(compared)
    for about, pairs in compared.pairs.items():
        yield ""
        yield from _results(about, pairs)
    yield ""
    for title, runs in (("without a counterpart", compared.unpaired), ("not finished", compared.unfinished)):
        if runs:
            yield from _wrapped(f"skipped, because {title}: {', '.join(runs)}")
    lengths = next(((a, b) for key, a, b in compared.differing if key == "rounds"), None)
    if lengths:
        yield from _wrapped(
            f"A has {lengths[0]} rounds and B {lengths[1]}: accuracies of the last rounds are those of "
            "different rounds"
        )
    if apart := [key for key, *_ in compared.differing if is_paired(key) and key != "rounds"]:
        yield from _wrapped(
            f"A and B differ in {', '.join(apart)}: runs of one seed differ in partition, cohorts or model, "
            "so pairing removes little of the spread"
        )
    yield from _wrapped(
        f"B - A: mean over pairs of runs with the same seed, with a {100 * claims.LEVEL:.0f} % bootstrap "
        "interval, widened for few seeds. Differences of accuracies are percentage points. Rounds to "
        f"{TARGET:g} of A's final accuracy: of a mean over {claims.LAST_ROUNDS} rounds; a run that never "
        "reaches it counts one round more than it has"
    )


def _settings(compared: Comparison) -> Iterator[str]:
    """Yield the table of differing settings."""
    if not compared.differing:
        yield "no setting differs between A and B"
        return
    rows = [("setting", "A", "B"), *((key, str(a), str(b)) for key, a, b in compared.differing)]
    first, second = (max(len(row[place]) for row in rows) + 2 for place in (0, 1))
    for key, a, b in rows:
        row = f"{key:<{first}}{a:<{second}}{b}"
        if len(row) > WIDTH:
            yield from _wrapped(f"{key}: {a} in A, {b} in B")
        else:
            yield row


def _results(about: str, pairs: Sequence[tuple[Run, Run]]) -> Iterator[str]:
    """Yield the table of results of pairs of runs, and its conclusion."""
    title = f"{counted(len(pairs), 'pair')} by seed"
    if about:
        yield from _wrapped(about)
    yield f"{title:<{LABEL}}{'A':>{NUMBER}}{'B':>{NUMBER}}{'B - A':>{NUMBER + 1}}  [95 % interval]"
    for name, measure in MEASURES.items():
        a, b = np.array([measure(*pair) for pair in pairs], dtype=float).T
        if np.isnan(b - a).any():  # evaluation.every skips all rounds that the measure needs
            continue
        low, high = claims.interval(b - a)
        interval = f"  [{low:+.2f}, {high:+.2f}]" if len(pairs) > 1 else ""
        numbers = f"{a.mean():{NUMBER}.2f}{b.mean():{NUMBER}.2f}{(b - a).mean():+{NUMBER + 1}.2f}"
        yield f"{name:<{LABEL}}{numbers}{interval}"
    yield from _wrapped(conclude(np.array([claims.final(b) - claims.final(a) for a, b in pairs])))


def conclude(differences: np.ndarray) -> str:
    """Return what paired differences of accuracy, B - A, float64 (pairs,), show."""
    low, high = claims.interval(differences)
    if len(differences) < 2:
        return f"one pair decides nothing: compare at least {claims.MIN_SEEDS} seeds"
    if not differences.any():
        return f"the {claims.AT_THE_END} is the same in every pair"
    if len(differences) < claims.MIN_SEEDS:
        return f"undecided in all rows: compare at least {claims.MIN_SEEDS} seeds"
    if low > 0 or high < 0:
        return f"{'B' if low > 0 else 'A'} has the higher {claims.AT_THE_END}: the interval excludes 0"
    return f"undecided: the interval includes 0; {claims.seeds_needed(differences)} would decide"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="   ")
