"""From where an interrupted run continues: the global weights after a round, and what else the server remembers."""

import os

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from genfl_mpi.results import space


def path_for(results):
    return results.with_suffix(".checkpoint")


def save(results, round, weights, state):
    """Replace the checkpoint of a results file in one step. weights: float32 (size,); state: a dict of other arrays.
    Raises UserError on a full disk."""
    path = path_for(results)
    space.ensure(path.parent, weights.nbytes + sum(array.nbytes for array in state.values()))
    unfinished = path.with_name(f".{path.name}.new")
    save_file({"weights": np.asarray(weights), **state}, unfinished, metadata={"round": str(round)})
    os.replace(unfinished, path)


def load(results):
    """(round, weights, state) of the checkpoint beside a results file; (0, None, {}) if there is none."""
    if not path_for(results).exists():
        return 0, None, {}
    with safe_open(path_for(results), "np") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
        return int(file.metadata()["round"]), state.pop("weights"), state


def remove(results):
    path_for(results).unlink(missing_ok=True)
