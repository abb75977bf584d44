"""Starting over in another way: old files moved aside, or a counterfactual from a checkpointed round of another run."""

import itertools
from pathlib import Path

from genfl_mpi.config.loading import decided, flatten, load, nested
from genfl_mpi.results import checkpoint, progress, reader
from genfl_mpi.results.lock import Lock
from genfl_mpi.util.errors import UserError

# Settings, and sections of them, with which the weights, the server's state, the rows of the rounds or the
# data would no longer fit.
FIXED = {"model", "data.name", "data.size", "data.samples", "algorithm.name", "clients", "cohort"}


def move_aside(paths, say):
    """Move what there is of the runs in the results files `paths` into a new folder beside them.

    Returns the locks of the runs, {path: `Lock`}, taken before anything is moved, so that no other start
    loses its files. Raises UserError, with no lock held, if a run is being computed or its files cannot be moved.
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


def _move_aside(paths, say):
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
            raise UserError(f"{aside}: the old files cannot be moved aside: {error.strerror}") from None
        say(f"{folder}: moved {', '.join(part.name for part in old)} into {aside}")


def _parts(path):
    return path, checkpoint.path_for(path), progress.path_for(path), path.with_suffix(".variates")


def runs(path, round, overrides):
    """The runs, by name, that differ from the one in the results file `path` by `overrides`, "key=value", from `round` on; by
    default in a folder of their own beside it. Raises UserError."""
    with reader.open_results(path) as file, reader.damage(path):
        stored, rows = reader.config_of(file), reader.rounds_of(file)
    if not 1 <= round <= rows:
        raise UserError(f"--at {round}: {path} has rounds 1 to {rows}")
    before = flatten(stored)
    stored = nested(decided(stored)) | {
        "runtime": stored["runtime"]
    }  # what follows from other settings, follows them again
    stored["output"] = str(path.with_suffix("")) + f"_fork{round}"
    found = load(stored, overrides)
    for name, config in found.items():
        now = flatten(config.model_dump())
        for key in now:
            if now[key] != before.get(key) and not FIXED.isdisjoint({key, key.partition(".")[0]}):
                raise UserError(f"{key} cannot change in a fork: it was {before.get(key)} in {path}")
        if config.rounds <= round:
            raise UserError(
                f"rounds={config.rounds}: nothing would follow round {round}, at which the fork begins"
            )
        if Path(config.output, f"{name}.h5").resolve() == path.resolve():
            raise UserError(
                f"output={config.output}: a fork must not be written over {path}; set another `output`"
            )
    return found
