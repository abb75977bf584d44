"""The progress of a run, from its results file or, while it is unreadable, from rank 0's notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from genfl_mpi.config.composition import METHOD_TITLES
from genfl_mpi.results import progress, reader
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

FIELDS = ("round", "accuracy", "images", "round_seconds", "subset_accuracy")


class Round(NamedTuple):
    """Describe a finished round.

    accuracy: on the test set, in [0, 1], NaN if not evaluated; images: generated so far; seconds: duration of
    the round; subset_accuracy: on evaluation.subset, or NaN.
    """

    number: int
    accuracy: float
    images: int
    seconds: float
    subset_accuracy: float = np.nan

    @property
    def progress(self) -> float:
        """Return the accuracy on the test set, or without it that on the subset."""
        return self.subset_accuracy if np.isnan(self.accuracy) else self.accuracy


@dataclass
class Status:
    """Describe the progress of a run.

    path: of the results file; rounds: total number of rounds; done: a `Round` for each finished one.
    """

    path: Path
    method: str
    rounds: int
    done: list[Round] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the run's name, that of its results file."""
        return self.path.stem

    @property
    def finished(self) -> bool:
        """Return whether all rounds are finished."""
        return len(self.done) >= self.rounds

    def seconds_left(self, so_far: float = 0.0, whole: float = np.nan) -> float:
        """Predict the remaining time from the last five rounds; before the first from `whole`.

        so_far, whole: seconds of the current round until now, and predicted; NaN if unknown.
        """
        last = [round.seconds for round in self.done[-5:]]
        each = float(np.median(last)) if last else whole
        left = (self.rounds - len(self.done)) * each
        return left - float(np.clip(np.nan_to_num(so_far), 0.0, each)) if left > 0 else left


def start_status(
    path: Path, config: Config, columns: Mapping[str, Sequence[Any] | np.ndarray] | None
) -> Status:
    """Return the `Status` of a run that starts, or continues after rounds with these columns of /rounds."""
    return Status(path, METHOD_TITLES[config.method], config.rounds, _rounds(columns))


def read_status(path: Path) -> Status | None:
    """Return the `Status` of a results file, growing or not; None if nothing can be read yet.

    Raises UserError if it is not a results file.
    """
    noted = progress.read_rounds(path)
    try:
        with reader.open_results(path) as file, reader.report_damage(path):
            config = reader.read_config(file)
            found = Status(
                path,
                METHOD_TITLES[config["method"]],
                config["rounds"],
                _rounds(reader.read_columns(file, "rounds", FIELDS)),
            )
    except UserError:  # SWMR fails on this file system, or the file does not exist yet
        if not noted and progress.read(path):
            return None
        if not noted:
            raise
        found = Status(path, *noted[0])
    known = {round.number: round for round in [*found.done, *(Round(*row) for row in noted[1:])]}
    found.done = [known[number] for number in sorted(known)]
    return found


def _rounds(columns: Mapping[str, Sequence[Any] | np.ndarray] | None) -> list[Round]:
    return (
        [Round(*row) for row in zip(*(np.asarray(columns[name]).tolist() for name in FIELDS))]
        if columns
        else []
    )
