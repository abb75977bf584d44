"""From where an interrupted run continues: the global weights after a round, in a file beside the results."""

import os

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from genfl_mpi.results import space


def path_for(results):
    return results.with_suffix(".checkpoint")


def save(results, round, weights):
    """Replace the checkpoint of a results file in one step. weights: float32 (size,). Raises UserError on a full disk."""
    path = path_for(results)
    space.ensure(path.parent, weights.nbytes)
    unfinished = path.with_name(f".{path.name}.new")
    save_file({"weights": np.asarray(weights)}, unfinished, metadata={"round": str(round)})
    os.replace(unfinished, path)


def load(results):
    """(round, weights) of the checkpoint beside a results file; (0, None) if there is none."""
    if not path_for(results).exists():
        return 0, None
    with safe_open(path_for(results), "np") as file:
        return int(file.metadata()["round"]), file.get_tensor("weights")


def remove(results):
    path_for(results).unlink(missing_ok=True)
