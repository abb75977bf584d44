"""From where an interrupted run continues: the global weights after a round, and what else the server remembers.

Checkpoints lie in a folder beside the results file, one safetensors file for each checkpointed round, named by it. A file is
written under another name, brought to the disk and renamed, so that a kill or a power cut at any moment leaves the one before;
that one is kept until there are two newer ones, in case the newest is damaged.
"""

import hashlib
import os
import shutil
from contextlib import suppress

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genfl_mpi.errors import UserError
from genfl_mpi.results import space

NEWEST = 2  # checkpoints that always stay


def path_for(results):
    """The folder of a results file's checkpoints."""
    return results.with_suffix(".checkpoint")


def save(results, round, weights, state, keep=None):
    """Add a checkpoint beside a results file, in one step, and remove those that are no longer wanted.

    weights: float32 (size,); state: a dict of other arrays; keep: every keep-th round stays for ever. Raises UserError.
    """
    folder = path_for(results)
    arrays = {"weights": np.asarray(weights), **state}
    unfinished, path = folder / ".new", folder / f"{round}.safetensors"
    space.ensure(results.parent, sum(array.nbytes for array in arrays.values()))
    try:
        folder.mkdir(exist_ok=True)
        save_file(arrays, unfinished, metadata={"round": str(round), "sha256": _checksum(round, arrays)})
        space.flush(unfinished)
        os.replace(unfinished, path)
        space.flush(folder)
    except (OSError, SafetensorError) as error:
        raise space.failed(path, error) from None
    there = rounds(results)
    newest = [old for old in there if old <= round][-NEWEST:]
    for old in there:  # a newer one is damaged, or this one would not have been made
        if old > round or (old not in newest and (keep is None or old % keep)):
            (folder / f"{old}.safetensors").unlink()


def rounds(results):
    """The checkpointed rounds, in their order, damaged or not."""
    return sorted(int(path.stem) for path in path_for(results).glob("*.safetensors"))


def load(results, say, at=None):
    """(round, weights, state) of the newest checkpoint that is whole, or of that of the round `at`; (0, None, {}) if there is
    none.

    say: told of each that is damaged. Raises UserError if there are checkpoints and none of them is whole.
    """
    found = [round for round in rounds(results) if at in (None, round)]
    for round in reversed(found):
        path = path_for(results) / f"{round}.safetensors"
        try:
            with safe_open(path, "np") as file:
                state, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
            if about["round"] == str(round) and about["sha256"] == _checksum(round, state):
                return round, state.pop("weights"), state
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            pass
        say(f"{path}: the checkpoint is damaged")
    if found:
        raise UserError(f"{path_for(results)}: no checkpoint is whole; start over with --fresh, which moves the old files aside")
    return 0, None, {}


def trained(results):
    """Of each checkpoint, oldest first, the round in which each client trained last, int64 (clients,): SCAFFOLD's. Without those that
    cannot be read, which nothing can go on from."""
    found = []
    for round in rounds(results):
        with suppress(OSError, SafetensorError), safe_open(path_for(results) / f"{round}.safetensors", "np") as file:
            found.append(file.get_tensor("trained"))
    return found


def remove(results, keep=None):
    """Remove all checkpoints, but those of every keep-th round if it is given."""
    if keep is None:
        shutil.rmtree(path_for(results), ignore_errors=True)
        return
    for round in rounds(results):
        if round % keep:
            (path_for(results) / f"{round}.safetensors").unlink()


def _checksum(round, arrays):
    """SHA-256 of the round and of every array with its name, type and shape."""
    total = hashlib.sha256(f"round {round}".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"\n{name} {array.dtype} {array.shape} ".encode())
        total.update(array)
    return total.hexdigest()
