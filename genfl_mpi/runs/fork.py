"""Start over: move old files aside, or fork a run at a checkpointed round to continue with other settings."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from genfl_mpi.config.differences import chosen_settings, flatten
from genfl_mpi.config.loading import load, nested
from genfl_mpi.config.settings import Config
from genfl_mpi.results import checkpoint, progress, reader
from genfl_mpi.results.lock import Lock
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


# Settings and sections that determine the shapes of the weights, the server's state, the stored rounds or the
# data.
FIXED = {
    "model",
    "data.name",
    "data.size",
    "data.samples",
    "algorithm.name",
    "personal.method",
    "personal.layers",
    "clients",
    "cohort",
    "time",
}


def move_aside(paths: Sequence[Path], say: Callable[[str], None]) -> dict[Path, Lock]:
    """Move all files of the runs in the results files `paths` to a new folder beside them.

    Returns the locks of the runs, {path: lock}. They are taken before anything is moved, so that another job
    does not lose its files. Raises UserError, with no lock held, if a run is being computed or its files
    cannot be moved.
    """
    held = {}
    try:
        for path in paths:
            held[path] = Lock(path)
        _move_aside(paths, say)
    except BaseException:
        for lock in held.values():
            lock.release()
        raise
    return held


def _move_aside(paths: Sequence[Path], say: Callable[[str], None]) -> None:
    for folder in dict.fromkeys(path.parent for path in paths):
        old = [part for path in paths if path.parent == folder for part in _parts(path) if part.exists()]
        if not old:
            continue
        aside = next(
            place for number in itertools.count(1) if not (place := folder / f"aside-{number}").exists()
        )
        try:
            aside.mkdir()
            for part in old:
                part.rename(aside / part.name)
        except OSError as error:
            raise UserError(f"{aside}: cannot move the old files there: {error.strerror}") from None
        say(f"{folder}: moved {', '.join(part.name for part in old)} into {aside}")


def _parts(path: Path) -> tuple[Path, ...]:
    """Return the files and folders of a run."""
    return path, checkpoint.path_for(path), progress.path_for(path), path.with_suffix(".variates")


def runs(path: Path, round: int, overrides: Iterable[str]) -> dict[str, Config]:
    """Return forks of the run in the results file `path`, {name: `Config`}.

    round: last common round. overrides: strings "key=value". By default the results are written to a new
    folder beside the file. Raises UserError.
    """
    with reader.open_results(path) as file, reader.report_damage(path):
        stored, rows = reader.read_config(file), reader.count_rounds(file)
    if not 1 <= round <= rows:
        raise UserError(f"--at {round}: {path} has rounds 1 to {rows}")
    before = flatten(Config().model_dump()) | flatten(stored)
    # Only what the user chose: derived settings follow the overrides.
    stored = nested(chosen_settings(stored)) | {"runtime": stored["runtime"]}
    stored["output"] = str(path.with_suffix("")) + f"_fork{round}"
    found = load(stored, overrides)
    for name, config in found.items():
        now = flatten(config.model_dump())
        for key in now:
            if now[key] != before.get(key) and not FIXED.isdisjoint({key, key.partition(".")[0]}):
                raise UserError(f"{key} cannot change in a fork: it is {before.get(key)} in {path}")
        if config.rounds <= round:
            raise UserError(
                f"rounds={config.rounds}: no round is left after the fork at round {round}; increase rounds"
            )
        if Path(config.output, f"{name}.h5").resolve() == path.resolve():
            raise UserError(f"output={config.output}: the fork would overwrite {path}; set another `output`")
    return found
