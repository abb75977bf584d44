"""How far a run is: from its results file, or while that cannot be read, from what rank 0 notes beside it."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from genfl_mpi.config.settings import METHOD_TITLES
from genfl_mpi.results import progress, reader
from genfl_mpi.util.errors import UserError


class Round(NamedTuple):
    """accuracy: of the test set, in [0, 1]; images: generated so far; seconds: that it took."""

    number: int
    accuracy: float
    images: int
    seconds: float


@dataclass
class Status:
    """name, path: of the results file; rounds: how many the run is to have; done: a `Round` for each finished one."""

    path: object
    method: str
    rounds: int
    done: list = field(default_factory=list)

    @property
    def name(self):
        return self.path.stem

    @property
    def finished(self):
        return len(self.done) >= self.rounds

    def seconds_left(self):
        """Predicted, from the last rounds; NaN before the first."""
        last = [one.seconds for one in self.done[-5:]]
        return (self.rounds - len(self.done)) * float(np.median(last)) if last else np.nan


def begun(path, config, columns):
    """The `Status` of a run that begins, or continues after rounds with these columns of /rounds, by name."""
    return Status(path, METHOD_TITLES[config.method], config.rounds, _rounds(columns))


def of_run(path):
    """The `Status` of a results file, growing or not; None if there is nothing to be read yet. Raises UserError for a file that is
    none of ours."""
    noted = progress.rounds(path)
    try:
        with reader.open_results(path) as file, reader.damage(path):
            config = reader.config_of(file)
            found = Status(
                path,
                METHOD_TITLES[config["method"]],
                config["rounds"],
                _rounds(reader.columns_of(file, "rounds", FIELDS)),
            )
    except UserError:  # the file system lacks what a growing file needs, or the file is not there yet
        if not noted and progress.read(path):
            return None
        if not noted:
            raise
        found = Status(path, *noted[0])
    known = {one.number: one for one in [*found.done, *(Round(*row) for row in noted[1:])]}
    found.done = [known[number] for number in sorted(known)]
    return found


FIELDS = ("round", "accuracy", "images", "round_seconds")


def _rounds(columns):
    return (
        [Round(*row) for row in zip(*(np.asarray(columns[name]).tolist() for name in FIELDS))]
        if columns
        else []
    )
