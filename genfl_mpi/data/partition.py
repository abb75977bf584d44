"""Clients as slices of one index array: client n holds indices[pointers[n]:pointers[n + 1]] of the training set."""

import numpy as np

from genfl_mpi import streams
from genfl_mpi.errors import UserError

RETRIES = 20  # draws of the Dirichlet split before the last one is repaired


def partition(labels, clients, classes, settings, seed):
    """Divide the training set over the clients.

    labels: int64 (n,). settings: config.partition. Returns pointers int64 (clients + 1,) and indices int64 (n,).
    Every sample belongs to exactly one client, and every client holds at least settings.min_samples.
    Raises UserError if that is impossible.
    """
    if clients * settings.min_samples > len(labels):
        raise UserError(f"{clients} clients with partition.min_samples={settings.min_samples} need {clients * settings.min_samples} "
                        f"samples and the training set has {len(labels)}; use fewer clients or a smaller minimum")
    rng = streams.generator(seed, "partition")
    if settings.scheme == "iid":
        owners = np.empty(len(labels), dtype=np.int64)
        owners[rng.permutation(len(labels))] = np.arange(len(labels)) * clients // len(labels)
    else:
        for _ in range(RETRIES):
            owners = _dirichlet(labels, clients, classes, settings.alpha, rng)
            if np.bincount(owners, minlength=clients).min() >= settings.min_samples:
                break
        else:
            _repair(owners, clients, settings.min_samples, rng)
    pointers = np.zeros(clients + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners, minlength=clients), out=pointers[1:])
    return pointers, np.argsort(owners, kind="stable")


def _dirichlet(labels, clients, classes, alpha, rng):
    """Owner of each sample: each class is divided by proportions ~ Dir(alpha), clients that are full getting no more
    (Wang et al. 2020, FedMA; Li et al. 2022, NIID-Bench)."""
    owners = np.empty(len(labels), dtype=np.int64)
    sizes = np.zeros(clients, dtype=np.int64)
    for label in range(classes):
        samples = rng.permutation(np.flatnonzero(labels == label))
        proportions = rng.dirichlet(np.full(clients, alpha)) * (sizes < len(labels) / clients)
        if proportions.sum() == 0:  # every client with a share is full: one that is not takes the class
            proportions[rng.choice(np.flatnonzero(sizes < len(labels) / clients))] = 1
        ends = np.round(np.cumsum(proportions / proportions.sum()) * len(samples)).astype(np.int64)
        counts = np.diff(ends, prepend=0)
        owners[samples] = np.repeat(np.arange(clients), counts)
        sizes += counts
    return owners


def _repair(owners, clients, min_samples, rng):
    """Move random samples, in place, from the largest clients to those that hold too few."""
    sizes = np.bincount(owners, minlength=clients)
    for client in np.flatnonzero(sizes < min_samples):
        while sizes[client] < min_samples:
            donor = sizes.argmax()
            count = min(min_samples - sizes[client], max(1, (sizes[donor] - min_samples) // 2))
            owners[rng.choice(np.flatnonzero(owners == donor), count, replace=False)] = client
            sizes[donor] -= count
            sizes[client] += count
