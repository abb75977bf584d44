"""Policies are plain functions of what the server knows. A configuration names one of ours, or module:function."""

from dataclasses import dataclass

import numpy as np

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
