"""From where an interrupted run continues: the global weights after a round, and what else the server remembers.

Checkpoints lie in a folder beside the results file, a `sealed` file for each checkpointed round, named by it.
A kill or a power cut at any moment leaves the one before; that one is kept until there are two newer ones, in
case the newest is damaged. Files of other names in the folder are left alone.
"""

import re
from contextlib import suppress

import numpy as np
from safetensors import SafetensorError, safe_open

from genfl_mpi.results import disk, sealed_files
from genfl_mpi.util.errors import UserError

NEWEST = 2  # checkpoints that always stay


def path_for(results):
    """The folder of a results file's checkpoints."""
    return results.with_suffix(".checkpoint")


def save(results, run, round, weights, state, keep=None):
    """Add a checkpoint beside a results file, in one step, and remove those that are no longer wanted.

    run: the run's id; weights: float32 (size,); state: a dict of other arrays; keep: every keep-th round
    stays for ever. Raises UserError.
    """
    path = _path(results, round)
    sealed_files.write(path, _identity(run, round), {"weights": np.asarray(weights), **state})
    try:
        disk.flush(path.parent)
        there = rounds(results)
        newest = [old for old in there if old <= round][-NEWEST:]
        for old in there:  # a newer one is damaged, or this one would not have been made
            if old > round or (old not in newest and (keep is None or old % keep)):
                _path(results, old).unlink()
    except OSError as error:
        raise disk.failed(path, error) from None


def rounds(results):
    """The checkpointed rounds, in their order, damaged or not."""
    return sorted(
        int(path.stem)
        for path in path_for(results).glob("*.safetensors")
        if re.fullmatch(r"[1-9][0-9]*", path.stem, re.ASCII) and path.is_file()
    )


def load(results, run, say, at=None):
    """(round, weights, state) of the newest checkpoint that is whole, or of that of the round `at`; (0, None, {}) if there is
    none.

    run: the id that it must have; say: told of each that is damaged. Raises UserError if there are
    checkpoints and none of them is whole, or for one of another run.
    """
    found = [round for round in rounds(results) if at in (None, round)]
    for round in reversed(found):
        path = _path(results, round)
        with suppress(sealed_files.Damaged, FileNotFoundError):
            identity, state = sealed_files.read(path)
            if identity.get("run", run) != run:
                raise UserError(
                    f"{path}: a checkpoint of run {identity['run']}, but {results.name} is of "
                    f"run {run}: move it away"
                )
            if identity == _identity(run, round) and "weights" in state:
                return round, state.pop("weights"), state
        say(f"{path}: the checkpoint is damaged")
    if found:
        raise UserError(
            f"{path_for(results)}: no checkpoint is whole; start over with --fresh, which moves the old files aside"
        )
    return 0, None, {}


def trained(results):
    """Of each checkpoint, oldest first, the round in which each client trained last, int64 (clients,): SCAFFOLD's. Without those that
    cannot be read, which nothing can go on from."""
    found = []
    for round in rounds(results):
        with suppress(OSError, SafetensorError), safe_open(_path(results, round), "np") as file:
            found.append(file.get_tensor("trained"))
    return found


def remove(results, keep=None):
    """Remove all checkpoints, but those of every keep-th round if it is given, and the folder once it is
    empty.

    Raises UserError.
    """
    for round in rounds(results):
        if keep is None or round % keep:
            try:
                _path(results, round).unlink()
            except OSError as error:
                raise disk.failed(_path(results, round), error) from None
    with suppress(OSError):
        path_for(results).rmdir()


def _path(results, round):
    return path_for(results) / f"{round}.safetensors"


def _identity(run, round):
    return {"run": run, "round": str(round)}
