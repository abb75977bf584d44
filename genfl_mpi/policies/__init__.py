"""Policies are plain functions of what the server knows. A configuration names one of ours, or module:function."""

import difflib
import importlib
from dataclasses import dataclass

import numpy as np

from genfl_mpi.errors import UserError
from genfl_mpi.settings import Config


@dataclass(frozen=True)
class ServerState:
    """What the server knows when it asks a policy.

    samples: int64 (clients,), |D_n|. shared_labels: int32 (clients, classes), what the clients told of their labels:
    counts, or 0 and 1, as config.label_sharing has it. generated: int64 (classes,), images so far.
    cohort: int64 (K,), client ids; None while they are not chosen. The weights, float32 (size,), are given to a kappa
    policy only: before the round, of the aggregated clients, and of the augmented model.
    """

    round: int
    config: Config
    samples: np.ndarray
    shared_labels: np.ndarray
    generated: np.ndarray
    cohort: np.ndarray | None = None
    weights: np.ndarray | None = None
    fl_weights: np.ndarray | None = None
    augmented_weights: np.ndarray | None = None


def find(name, known, key):
    """The function called `name` in the dict `known`, or the one that "module:function" points to. Raises UserError."""
    if name in known:
        return known[name]
    module, colon, function = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise UserError(f"{key}: no policy {name!r}; did you mean {near!r}? Your own is written module:function")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}: {name} cannot be imported: {error}") from None
