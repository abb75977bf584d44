"""Clients as slices of one index array: client n holds samples indices[pointers[n]:pointers[n + 1]]."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.config.functions import find
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError, annotate_errors

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import Partition

MAX_DRAWS = 20  # draws of the Dirichlet split before the last one is repaired
# Clients processed at a time where arrays for all clients would take more memory than their data.
BLOCK = 4096


def partition(
    labels: np.ndarray,
    clients: int,
    classes: int,
    settings: Partition,
    seed: int,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples over the clients.

    labels: int (n,). settings: config.partition. groups: int (n,), the natural client of each sample, for
    scheme=groups without a file; None if the data set has none. Returns pointers int64 (clients + 1,) and
    indices int32 into `labels`, ascending within each client.

    Without settings.replacement every client holds at least settings.min_samples, and no sample belongs to
    two clients. Every sample belongs to a client, with two exceptions: groups that scheme=groups does not
    draw, and classes that no client holds with scheme=classes. Raises UserError if the minimum cannot be met.
    """
    check(settings, clients, classes, len(labels))
    rng = streams.generator(seed, "partition")
    if settings.replacement:
        return _draw_with_replacement(labels, clients, classes, settings, rng)
    if clients * settings.min_samples > len(labels):
        raise UserError(
            f"{clients} clients with partition.min_samples={settings.min_samples} need "
            f"{clients * settings.min_samples} samples, but the training set has {len(labels)}; use fewer "
            "clients or a smaller minimum, or draw with replacement: partition.replacement=true"
        )
    if settings.scheme == "groups" and settings.groups is None and groups is not None:
        owners = _natural(groups, clients, settings.min_samples, rng)
    else:
        owners = _assign_owners(labels, clients, classes, settings, rng)
    sizes = np.bincount(owners[owners >= 0], minlength=clients)
    if sizes.min() < settings.min_samples:
        raise UserError(
            f"partition.scheme={settings.scheme} leaves client {sizes.argmin()} with {sizes.min()} samples, "
            f"fewer than partition.min_samples={settings.min_samples}; use fewer clients or a smaller "
            "minimum"
        )
    pointers = np.zeros(clients + 1, dtype=np.int64)
    np.cumsum(sizes, out=pointers[1:])
    return pointers, np.argsort(owners, kind="stable")[np.count_nonzero(owners < 0) :].astype(np.int32)


def check(settings: Partition, clients: int, classes: int, samples: int) -> None:
    """Raise UserError for an unknown scheme, more shards than samples, or more labels than classes."""
    find(settings.scheme, SCHEMES, "partition.scheme")
    if settings.scheme == "shards" and clients * settings.shards > samples:
        raise UserError(
            f"partition.shards={settings.shards}: {clients} clients have {clients * settings.shards} "
            f"shards, but only {samples} samples are divided; use fewer clients or shards"
        )
    if settings.scheme == "classes" and settings.classes_per_client > classes:
        raise UserError(
            f"partition.classes_per_client={settings.classes_per_client}: the data set has {classes} "
            f"classes; use at most {classes}"
        )


def blocks(count: int) -> Iterator[slice]:
    """Yield consecutive slices of at most BLOCK elements that cover `count` elements."""
    return (slice(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK))


def _assign_owners(
    labels: np.ndarray, clients: int, classes: int, settings: Partition, rng: np.random.Generator
) -> np.ndarray:
    """Return the client of each sample, int (n,), or -1 for none, by a built-in scheme or the user's own.

    Raises UserError if the scheme does not exist or returns anything else.
    """
    scheme = find(settings.scheme, SCHEMES, "partition.scheme")
    with annotate_errors(f"partition.scheme {settings.scheme}"):
        owners = np.asarray(scheme(labels, clients, classes, settings, rng))
    if (
        owners.shape != labels.shape
        or owners.dtype.kind not in "iu"
        or owners.min() < -1
        or owners.max() >= clients
    ):
        raise UserError(
            f"partition.scheme: {settings.scheme} must return a client from 0 to {clients - 1}, or -1, for "
            f"each of {len(labels)} samples"
        )
    return owners


def _iid(
    labels: np.ndarray, clients: int, classes: int, settings: Partition, rng: np.random.Generator
) -> np.ndarray:
    """Divide all samples evenly, at random."""
    owners = np.empty(len(labels), dtype=np.int64)
    owners[rng.permutation(len(labels))] = np.arange(len(labels)) * clients // len(labels)
    return owners


def _dirichlet(
    labels: np.ndarray, clients: int, classes: int, settings: Partition, rng: np.random.Generator
) -> np.ndarray:
    """Divide each class over the clients by proportions ~ Dir(alpha).

    See Wang et al. 2020, FedMA, and Li et al. 2022, NIID-Bench. Draws again while a client has too few
    samples, at most MAX_DRAWS times; then repairs the last draw.
    """
    for _ in range(MAX_DRAWS):
        owners = _draw_dirichlet(labels, clients, classes, settings.alpha, rng)
        if np.bincount(owners, minlength=clients).min() >= settings.min_samples:
            return owners
    _repair(owners, clients, settings.min_samples, rng)
    return owners


def _draw_dirichlet(
    labels: np.ndarray, clients: int, classes: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw the owner of each sample; a client that holds n / clients samples gets no further class."""
    owners = np.empty(len(labels), dtype=np.int64)
    sizes = np.zeros(clients, dtype=np.int64)
    for label in range(classes):
        samples = rng.permutation(np.flatnonzero(labels == label))
        proportions = rng.dirichlet(np.full(clients, alpha)) * (sizes < len(labels) / clients)
        if not len(samples):
            continue
        if proportions.sum() == 0:  # every client with a share is full: another one takes the class
            proportions[rng.choice(np.flatnonzero(sizes < len(labels) / clients))] = 1
        ends = np.round(np.cumsum(proportions / proportions.sum()) * len(samples)).astype(np.int64)
        counts = np.diff(ends, prepend=0)
        owners[samples] = np.repeat(np.arange(clients), counts)
        sizes += counts
    return owners


def _dirichlet_client(
    labels: np.ndarray, clients: int, classes: int, settings: Partition, rng: np.random.Generator
) -> np.ndarray:
    """Let each client draw a label distribution q ~ Dir(alpha p), p the population's (Hsu et al. 2019).

    All clients have the same size. Each draws its samples by q from the classes that still have samples.
    """
    left = [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    mixes = _draw_label_mixes(labels, clients, classes, settings.alpha, rng)
    owners = np.empty(len(labels), dtype=np.int64)
    sizes = np.diff(np.arange(clients + 1) * len(labels) // clients)
    for client in range(clients):
        wanted = sizes[client]
        while wanted:
            remaining = np.array([len(samples) for samples in left])
            mix = mixes[client] * (remaining > 0)
            mix = mix / mix.sum() if mix.sum() > 0 else remaining / remaining.sum()
            counts = np.minimum(rng.multinomial(wanted, mix), remaining)
            for label in np.flatnonzero(counts):
                taken, left[label] = left[label][: counts[label]], left[label][counts[label] :]
                owners[taken] = client
            wanted -= counts.sum()
    return owners


def _shards(
    labels: np.ndarray, clients: int, classes: int, settings: Partition, rng: np.random.Generator
) -> np.ndarray:
    """Sort samples by label, cut them evenly, and give each client `shards` pieces (McMahan et al. 2017)."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    pieces = rng.permutation(clients * settings.shards)
    owners = np.empty(len(labels), dtype=np.int64)
    owners[order] = pieces[np.arange(len(labels)) * len(pieces) // len(labels)] // settings.shards
    return owners


def _classes(
    labels: np.ndarray, clients: int, classes: int, settings: Partition, rng: np.random.Generator
) -> np.ndarray:
    """Let each client hold `classes_per_client` labels; divide each label evenly over its holders."""
    held = _draw_held_labels(clients, classes, settings.classes_per_client, rng)
    owners = np.full(len(labels), -1, dtype=np.int64)
    for label in range(classes):
        holders = rng.permutation(np.flatnonzero(held[:, label]))
        samples = rng.permutation(np.flatnonzero(labels == label))
        if len(holders):
            owners[samples] = holders[np.arange(len(samples)) * len(holders) // max(1, len(samples))]
    return owners


def _groups(
    labels: np.ndarray, clients: int, classes: int, settings: Partition, rng: np.random.Generator
) -> np.ndarray:
    """Let each client be a group of the user's file; each line names the group of a training sample."""
    if settings.groups is None:
        raise UserError(
            "partition.scheme=groups needs partition.groups: a text file with one line per training "
            "sample, the name of its group; or a data set with natural clients, such as femnist, "
            "client_folders, or "
            "huggingface with data.columns.client"
        )
    try:
        names = Path(settings.groups).read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"partition.groups: {settings.groups} cannot be read: "
            f"{getattr(error, 'strerror', None) or 'not text'}; name "
            "a text file with one line per training sample"
        ) from None
    names = names[:-1] if names[-1] == "" else names
    if len(names) != len(labels):
        raise UserError(
            f"partition.groups: {settings.groups} has {len(names)} lines, but {len(labels)} training samples "
            "are divided; write one line per sample"
        )
    found, group = np.unique(names, return_inverse=True)
    if len(found) < clients:
        raise UserError(
            f"partition.groups: {settings.groups} has {len(found)} groups, fewer than clients={clients}; "
            "use fewer clients"
        )
    client_of = np.full(len(found), -1, dtype=np.int64)
    client_of[rng.permutation(len(found))[:clients]] = np.arange(clients)
    return client_of[group]


def _natural(groups: np.ndarray, clients: int, min_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the clients among the data set's natural ones that hold at least `min_samples` samples."""
    sizes = np.bincount(groups)
    large = np.flatnonzero(sizes >= min_samples)
    if len(large) < clients:
        raise UserError(
            f"the data set has {len(large)} natural clients of at least partition.min_samples={min_samples} "
            f"training samples, fewer than clients={clients}; use fewer clients or a smaller minimum"
        )
    client_of = np.full(len(sizes), -1, dtype=np.int64)
    client_of[rng.permutation(large)[:clients]] = np.arange(clients)
    return client_of[groups]


SCHEMES: dict[str, Callable[..., np.ndarray]] = {
    "dirichlet": _dirichlet,
    "dirichlet_client": _dirichlet_client,
    "iid": _iid,
    "shards": _shards,
    "classes": _classes,
    "groups": _groups,
}


def _draw_with_replacement(
    labels: np.ndarray, clients: int, classes: int, settings: Partition, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Let each client draw settings.samples samples by its own label mix; return pointers and indices.

    With replacement, the size of the data set does not limit the number of clients.
    """
    sizes = np.bincount(labels, minlength=classes)
    if settings.scheme == "dirichlet_client":
        mixes = _draw_label_mixes(labels, clients, classes, settings.alpha, rng)
    elif settings.scheme == "classes":
        held = _draw_held_labels(clients, classes, settings.classes_per_client, rng)
        mixes = held / settings.classes_per_client
    else:
        mixes = np.broadcast_to(sizes / len(labels), (clients, classes))
    counts = np.empty((clients, classes), dtype=np.int32)
    for block in blocks(clients):
        counts[block] = rng.multinomial(settings.samples, mixes[block])
    if (missing := counts[:, sizes == 0].any(0)).any():
        raise UserError(
            f"partition.scheme={settings.scheme}: clients draw class "
            f"{np.flatnonzero(sizes == 0)[missing][0]}, which has no "
            "training samples; use another scheme, or a smaller data.public_pool"
        )
    del mixes
    by_label = np.argsort(labels, kind="stable").astype(np.int32)
    starts = np.searchsorted(labels[by_label], np.arange(classes))
    indices = np.empty((clients, settings.samples), dtype=np.int32)
    for block in blocks(clients):
        drawn = np.repeat(np.tile(np.arange(classes), len(counts[block])), counts[block].ravel())
        samples = by_label[starts[drawn] + rng.integers(0, sizes[drawn])]
        indices[block] = np.sort(samples.reshape(-1, settings.samples), axis=1)
    return np.arange(clients + 1) * settings.samples, indices.ravel()


def _draw_label_mixes(
    labels: np.ndarray, clients: int, classes: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw a label distribution ~ Dir(alpha p) per client, p that of `labels`: float64 (clients, classes)."""
    population = np.bincount(labels, minlength=classes) / len(labels)
    # A Dirichlet draw is a vector of gamma draws divided by their sum. At small alpha all of them may
    # underflow, so the computation uses their logarithms: the largest then takes all.
    shapes = np.maximum(alpha * population, 1e-300)
    mixes = rng.gamma(shapes + 1, size=(clients, classes))
    for block in blocks(clients):
        logs = np.log(mixes[block]) + np.log(rng.random(mixes[block].shape)) / shapes
        logs[:, population == 0] = -np.inf
        logs = np.exp(logs - logs.max(1, keepdims=True))
        mixes[block] = logs / logs.sum(1, keepdims=True)
    return mixes


def _draw_held_labels(clients: int, classes: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `each` labels per client, bool (clients, classes); the labels' holders differ by at most one."""
    held, holders = np.zeros((clients, classes), dtype=bool), [0] * classes
    for block in blocks(clients):
        for own, ties in zip(held[block], rng.random((len(held[block]), classes)).tolist()):
            for _, _, label in sorted(zip(holders, ties, range(classes)))[:each]:
                own[label] = True
                holders[label] += 1
    return held


def _repair(owners: np.ndarray, clients: int, min_samples: int, rng: np.random.Generator) -> None:
    """Move random samples, in place, from the largest clients to clients with fewer than `min_samples`."""
    sizes = np.bincount(owners, minlength=clients)
    members = dict(enumerate(np.split(np.argsort(owners, kind="stable"), np.cumsum(sizes)[:-1])))
    # A heap of (-size, client). Changed sizes are pushed anew; outdated entries are dropped when they come
    # up.
    largest = [(-size, client) for client, size in enumerate(sizes.tolist())]
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
