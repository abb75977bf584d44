"""Clients as slices of one index array: client n holds indices[pointers[n]:pointers[n + 1]] of the training set."""

import heapq
from pathlib import Path

import numpy as np

from genfl_mpi.config.functions import find
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

RETRIES = 20  # draws of the Dirichlet split before the last one is repaired
BLOCK = 4096  # clients dealt with together, where arrays for all of them at once would take more memory than their data


def partition(labels, clients, classes, settings, seed):
    """Divide samples over the clients.

    labels: int (n,). settings: config.partition. Returns pointers int64 (clients + 1,) and indices int32, which name
    samples of `labels`, in rising order within a client. Without settings.replacement every client holds at least
    settings.min_samples, no sample has two clients, and every sample has one, but for groups that scheme=groups leaves out and
    classes that with scheme=classes nobody holds.
    Raises UserError if that is impossible.
    """
    rng = streams.generator(seed, "partition")
    if settings.replacement:
        return _with_replacement(labels, clients, classes, settings, rng)
    if clients * settings.min_samples > len(labels):
        raise UserError(
            f"{clients} clients with partition.min_samples={settings.min_samples} need {clients * settings.min_samples} samples and the training "
            f"set has {len(labels)}; use fewer clients or a smaller minimum, or draw with replacement: partition.replacement=true"
        )
    owners = _owners(labels, clients, classes, settings, rng)
    sizes = np.bincount(owners[owners >= 0], minlength=clients)
    if sizes.min() < settings.min_samples:
        raise UserError(
            f"partition.scheme={settings.scheme} leaves client {sizes.argmin()} with {sizes.min()} samples, fewer than partition.min_samples="
            f"{settings.min_samples}; use fewer clients or a smaller minimum"
        )
    pointers = np.zeros(clients + 1, dtype=np.int64)
    np.cumsum(sizes, out=pointers[1:])
    return pointers, np.argsort(owners, kind="stable")[np.count_nonzero(owners < 0) :].astype(np.int32)


def blocks(count):
    """Slices of at most BLOCK of `count` things, one after another."""
    return (slice(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK))


def _owners(labels, clients, classes, settings, rng):
    """The client of each sample, int (n,), by a scheme of ours or the user's own; -1: of none. Raises UserError."""
    owners = np.asarray(
        find(settings.scheme, SCHEMES, "partition.scheme")(labels, clients, classes, settings, rng)
    )
    if (
        owners.shape != labels.shape
        or owners.dtype.kind not in "iu"
        or owners.min() < -1
        or owners.max() >= clients
    ):
        raise UserError(
            f"partition.scheme: {settings.scheme} must return a client from 0 to {clients - 1}, or -1, for each of {len(labels)} samples"
        )
    return owners


def _iid(labels, clients, classes, settings, rng):
    owners = np.empty(len(labels), dtype=np.int64)
    owners[rng.permutation(len(labels))] = np.arange(len(labels)) * clients // len(labels)
    return owners


def _dirichlet(labels, clients, classes, settings, rng):
    """Each class is divided over the clients by proportions ~ Dir(alpha), drawn again while a client has too few samples
    (Wang et al. 2020, FedMA; Li et al. 2022, NIID-Bench); the last draw is repaired."""
    for _ in range(RETRIES):
        owners = _draw_dirichlet(labels, clients, classes, settings.alpha, rng)
        if np.bincount(owners, minlength=clients).min() >= settings.min_samples:
            return owners
    _repair(owners, clients, settings.min_samples, rng)
    return owners


def _draw_dirichlet(labels, clients, classes, alpha, rng):
    """Owner of each sample; clients that are full get no more."""
    owners = np.empty(len(labels), dtype=np.int64)
    sizes = np.zeros(clients, dtype=np.int64)
    for label in range(classes):
        samples = rng.permutation(np.flatnonzero(labels == label))
        proportions = rng.dirichlet(np.full(clients, alpha)) * (sizes < len(labels) / clients)
        if not len(samples):
            continue
        if proportions.sum() == 0:  # every client with a share is full: one that is not takes the class
            proportions[rng.choice(np.flatnonzero(sizes < len(labels) / clients))] = 1
        ends = np.round(np.cumsum(proportions / proportions.sum()) * len(samples)).astype(np.int64)
        counts = np.diff(ends, prepend=0)
        owners[samples] = np.repeat(np.arange(clients), counts)
        sizes += counts
    return owners


def _dirichlet_client(labels, clients, classes, settings, rng):
    """Each client, all of the same size, draws its label distribution q ~ Dir(alpha p), p being the population's, and then
    its samples by q among the classes that still have some (Hsu et al. 2019)."""
    left = [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    mixes = _label_mixes(labels, clients, classes, settings.alpha, rng)
    owners = np.empty(len(labels), dtype=np.int64)
    sizes = np.diff(np.arange(clients + 1) * len(labels) // clients)
    for client in range(clients):
        wanted = sizes[client]
        while wanted:
            there = np.array([len(samples) for samples in left])
            mix = mixes[client] * (there > 0)
            mix = mix / mix.sum() if mix.sum() > 0 else there / there.sum()
            counts = np.minimum(rng.multinomial(wanted, mix), there)
            for label in np.flatnonzero(counts):
                taken, left[label] = left[label][: counts[label]], left[label][counts[label] :]
                owners[taken] = client
            wanted -= counts.sum()
    return owners


def _shards(labels, clients, classes, settings, rng):
    """Sorted by label, cut into clients x shards pieces, of which each client gets `shards` (McMahan et al. 2017)."""
    if clients * settings.shards > len(labels):
        raise UserError(
            f"partition.shards={settings.shards}: {clients} clients have {clients * settings.shards} shards, and there are "
            f"{len(labels)} samples to divide; use fewer clients or shards"
        )
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    pieces = rng.permutation(clients * settings.shards)
    owners = np.empty(len(labels), dtype=np.int64)
    owners[order] = pieces[np.arange(len(labels)) * len(pieces) // len(labels)] // settings.shards
    return owners


def _classes(labels, clients, classes, settings, rng):
    """Each client holds `classes_per_client` labels, each of which is divided evenly over the clients that hold it."""
    held = _labels_held(clients, classes, settings.classes_per_client, rng)
    owners = np.full(len(labels), -1, dtype=np.int64)
    for label in range(classes):
        holders = rng.permutation(np.flatnonzero(held[:, label]))
        samples = rng.permutation(np.flatnonzero(labels == label))
        if len(holders):
            owners[samples] = holders[np.arange(len(samples)) * len(holders) // max(1, len(samples))]
    return owners


def _groups(labels, clients, classes, settings, rng):
    """Each client is a group of the user's file: a name for each training sample, a line each."""
    if settings.groups is None:
        raise UserError(
            "partition.scheme=groups needs partition.groups: a text file with the group of each training sample, a line each"
        )
    try:
        names = Path(settings.groups).read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"partition.groups: {settings.groups} cannot be read: {getattr(error, 'strerror', None) or 'not text'}"
        ) from None
    names = names[:-1] if names[-1] == "" else names
    if len(names) != len(labels):
        raise UserError(
            f"partition.groups: {settings.groups} has {len(names)} lines, and there are {len(labels)} training samples"
        )
    found, group = np.unique(names, return_inverse=True)
    if len(found) < clients:
        raise UserError(
            f"partition.groups: {settings.groups} has {len(found)} groups, fewer than clients={clients}"
        )
    client_of = np.full(len(found), -1, dtype=np.int64)
    client_of[rng.permutation(len(found))[:clients]] = np.arange(clients)
    return client_of[group]


SCHEMES = {
    "dirichlet": _dirichlet,
    "dirichlet_client": _dirichlet_client,
    "iid": _iid,
    "shards": _shards,
    "classes": _classes,
    "groups": _groups,
}


def _with_replacement(labels, clients, classes, settings, rng):
    """Each client draws settings.samples of all samples, by its own mix of labels: the size of the data set is no limit."""
    sizes = np.bincount(labels, minlength=classes)
    if settings.scheme == "dirichlet_client":
        mixes = _label_mixes(labels, clients, classes, settings.alpha, rng)
    elif settings.scheme == "classes":
        mixes = _labels_held(clients, classes, settings.classes_per_client, rng) / settings.classes_per_client
    else:
        mixes = np.broadcast_to(sizes / len(labels), (clients, classes))
    counts = np.empty((clients, classes), dtype=np.int32)
    for block in blocks(clients):
        counts[block] = rng.multinomial(settings.samples, mixes[block])
    if (missing := counts[:, sizes == 0].any(0)).any():
        raise UserError(
            f"partition.scheme={settings.scheme}: there are no training samples of class {np.flatnonzero(sizes == 0)[missing][0]}"
        )
    del mixes
    by_label = np.argsort(labels, kind="stable").astype(np.int32)
    starts = np.searchsorted(labels[by_label], np.arange(classes))
    indices = np.empty((clients, settings.samples), dtype=np.int32)
    for block in blocks(clients):
        drawn = np.repeat(np.tile(np.arange(classes), len(counts[block])), counts[block].ravel())
        own = by_label[starts[drawn] + rng.integers(0, sizes[drawn])]
        indices[block] = np.sort(own.reshape(-1, settings.samples), axis=1)
    return np.arange(clients + 1) * settings.samples, indices.ravel()


def _label_mixes(labels, clients, classes, alpha, rng):
    """float64 (clients, classes): a label distribution ~ Dir(alpha p) for each client, p being that of `labels`."""
    population = np.bincount(labels, minlength=classes) / len(labels)
    # A Dirichlet draw is gammas over their sum. At small alpha all may be too small for a float: then the logarithms are
    # compared, and the largest takes all.
    shapes = np.maximum(alpha * population, 1e-300)
    mixes = rng.gamma(shapes + 1, size=(clients, classes))
    for block in blocks(clients):
        logs = np.log(mixes[block]) + np.log(rng.random(mixes[block].shape)) / shapes
        logs[:, population == 0] = -np.inf
        logs = np.exp(logs - logs.max(1, keepdims=True))
        mixes[block] = logs / logs.sum(1, keepdims=True)
    return mixes


def _labels_held(clients, classes, each, rng):
    """bool (clients, classes): `each` labels for every client, all labels by as many clients, as far as it goes."""
    if each > classes:
        raise UserError(f"partition.classes_per_client={each}: there are {classes} classes")
    held, holders = np.zeros((clients, classes), dtype=bool), [0] * classes
    for block in blocks(clients):
        for own, ties in zip(held[block], rng.random((len(held[block]), classes)).tolist()):
            for _, _, label in sorted(zip(holders, ties, range(classes)))[:each]:
                own[label] = True
                holders[label] += 1
    return held


def _repair(owners, clients, min_samples, rng):
    """Move random samples, in place, from the largest clients to those that hold too few."""
    sizes = np.bincount(owners, minlength=clients)
    members = dict(enumerate(np.split(np.argsort(owners, kind="stable"), np.cumsum(sizes)[:-1])))
    largest = [(-size, client) for client, size in enumerate(sizes.tolist())]  # and sizes that were true once
    heapq.heapify(largest)
    for client in np.flatnonzero(sizes < min_samples).tolist():
        while sizes[client] < min_samples:
            while -largest[0][0] != sizes[largest[0][1]]:
                heapq.heappop(largest)
            donor = largest[0][1]
            count = min(min_samples - sizes[client], max(1, (sizes[donor] - min_samples) // 2))
            moved = rng.choice(members[donor], count, replace=False)
            owners[moved] = client
            for one, samples in (
                (donor, np.setdiff1d(members[donor], moved, assume_unique=True)),
                (client, np.union1d(members[client], moved)),
            ):
                members[one], sizes[one] = samples, len(samples)
                heapq.heappush(largest, (-len(samples), one))
