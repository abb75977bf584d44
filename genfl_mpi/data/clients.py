"""The clients' data: the samples that each holds, the labels that it shares, the images it trains on."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.data import datasets, public
from genfl_mpi.data.corruption import degrade, draw_attackers, draw_misbehaving, mislabel, overclaim
from genfl_mpi.data.labels import accepts_pay, label_histograms, share_labels
from genfl_mpi.data.local_test import divide_test
from genfl_mpi.data.partition import blocks, partition
from genfl_mpi.mpi import collectives
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from genfl_mpi.config.sections.samples import Data
    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI

Arrays = dict[str, np.ndarray]


def client_data(data: Mapping[str, np.ndarray], client: int, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return the training data of a client: uint8 images (n, C, H, W) and int64 labels (n,).

    data: arrays as of `load_and_divide`. Images and labels of misbehaving clients are degraded. The client's
    own samples come first, then those of the public pool that all clients share.
    """
    samples, labels = client_samples(data, client, config)
    images = data["train_images"][samples]
    if is_degraded(data, client, config):
        held = len(images) - config.data.shared
        images[:held] = degrade(
            images[:held], config.misbehaving_clients.kind, streams.generator(config.seed, "spoil", client)
        )
    return images, labels


def client_samples(
    data: Mapping[str, np.ndarray], client: int, config: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of a client's images in the training set, int (n,), and their labels, int64 (n,)."""
    held = slice(data["pointers"][client], data["pointers"][client + 1])
    samples, labels = data["indices"][held], data["client_labels"][held].astype(np.int64)
    if config.data.shared:
        common = data["common_samples"]
        samples, labels = (
            np.concatenate([samples, common]),
            np.concatenate([labels, data["train_labels"][common]]),
        )
    return samples, labels


def is_degraded(data: Mapping[str, np.ndarray], client: int, config: Config) -> bool:
    """Return whether a client's own images are degraded, and so differ from those of the training set."""
    return data["misbehaving"][client] and config.misbehaving_clients.kind in ("blurred", "noisy")


def free_rider_noise(data: Mapping[str, np.ndarray], client: int, config: Config) -> float | None:
    """Return the standard deviation of a free-rider's noise on the model; None if the client trains."""
    kinds = {"free_rider": 0.0, "disguised": config.misbehaving_clients.noise}
    return kinds.get(config.misbehaving_clients.kind) if data["misbehaving"][client] else None


def check_memory(config: Config) -> None:
    """Raise UserError if the data set, or its division over the clients, exceeds this machine's memory.

    Compares lower bounds of what they take with the installed memory.
    """
    data, split, about = config.data, config.partition, datasets.describe(config.data)
    held = config.clients * split.samples if split.replacement else about.train_samples
    named = f"data.name={data.name}" + f" with data.size={data.size}" * (data.name in ("folder", "synthetic"))
    division = f"clients={config.clients}" + f" with partition.samples={split.samples}" * split.replacement
    # The data set: 1 byte per value of an image, 8 per label. The clients: 4 bytes per sample, and 8 per
    # client and class, for its histogram and the one it shares.
    taken = (
        {}
        if data.arrays is not None
        else {
            f"the {about.train_samples} training images of {named}": about.train_samples
            * (math.prod(about.shape) + 8),
        }
    )
    taken |= {
        f"the samples of all clients, with {division},": 4 * held + 8 * len(about.classes) * config.clients,
    }
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for what, size in taken.items():
        if size > installed:
            raise UserError(
                f"{what} take {size / 1e9:,.0f} GB of memory, and this machine has {installed / 1e9:,.0f} "
                "GB; use fewer, or smaller ones"
            )


def load_once_per_node(comm: MPI.Comm, data: Data) -> tuple[Arrays, MPI.Win]:
    """Read the data set of config.data once per node, into shared memory. Collective.

    Returns its arrays, and the window that keeps their memory alive.
    """
    if data.download:
        collectives.call_on_all(comm, lambda: datasets.download(data) if comm.rank == 0 else None)
    if data.arrays is None:
        return collectives.node_shared(comm, lambda: datasets.load(data))
    # One rank of each node makes missing files; all map the images: the page cache holds one copy a node.
    shared, window = collectives.node_shared(
        comm, lambda: {name: one for name, one in datasets.load(data).items() if not _is_mapped(name)}
    )
    images = collectives.call_on_all(comm, lambda: datasets.load(data))
    return {**shared, **{name: one for name, one in images.items() if _is_mapped(name)}}, window


def _is_mapped(name: str) -> bool:
    """Return whether every rank maps an array of data.arrays, instead of sharing a copy."""
    return name.endswith("_images")


def divide(config: Config, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Divide a data set, without its public pool, over the clients; return arrays that a node holds once.

    arrays: as of `datasets.load`. Returns `pointers` and `indices` as of `partition`; `client_labels`, the
    label of each index, with the mistakes of mislabelling clients; `label_histograms` and `shared_labels`
    (clients, classes); bool (clients,) `misbehaving`, `attackers`, and `sharing`, whether the client shares
    its labels; with data.shared also `common_samples`, the indices of the public images given to clients;
    with personal models `local_test_pointers` and `local_test_indices` as of `divide_test`.
    """
    classes = len(datasets.describe(config.data).classes)
    labels = arrays["train_labels"]
    held = np.setdiff1d(
        np.arange(len(labels), dtype=np.int32), public.public_pool(labels, config.data.public_pool, classes)
    )
    groups = arrays["train_groups"][held] if "train_groups" in arrays else None
    pointers, indices = partition(
        labels[held], config.clients, classes, config.partition, config.seed, groups
    )
    for block in blocks(len(indices)):
        indices[block] = held[indices[block]]
    client_labels = labels.astype(np.min_scalar_type(classes))[indices]
    bad = draw_misbehaving(config.clients, config.misbehaving_clients, config.seed)
    if config.misbehaving_clients.kind == "mislabelled":
        for client in np.flatnonzero(bad):
            held_by_client = slice(pointers[client], pointers[client + 1])
            client_labels[held_by_client] = mislabel(
                client_labels[held_by_client], classes, streams.generator(config.seed, "spoil", client)
            )
    histograms = label_histograms(client_labels, pointers, classes)
    claims = histograms
    if config.misbehaving_clients.kind == "overclaiming":
        claims = np.where(bad[:, None], overclaim(histograms), histograms)
    shared, sharing = share_labels(claims, config.label_sharing, config.seed)
    sharing &= accepts_pay(config.clients, config.incentive, config.seed)
    shared[~sharing] = 0
    common = (
        {"common_samples": public.public_pool(labels, config.data.shared, classes)}
        if config.data.shared
        else {}
    )
    local: Arrays = {}
    if config.personal.method != "none" and "test_labels" in arrays:
        parts = divide_test(histograms, arrays["test_labels"], config.seed)
        local = dict(zip(("local_test_pointers", "local_test_indices"), parts))
    return {
        **common,
        **local,
        "pointers": pointers,
        "indices": indices,
        "client_labels": client_labels,
        "misbehaving": bad,
        "attackers": draw_attackers(config.clients, config.attack, config.seed),
        "label_histograms": histograms,
        "shared_labels": shared,
        "sharing": sharing,
    }


def load_and_divide(config: Config) -> Arrays:
    """Return all arrays of a run: those of the data set, and those of `divide`."""
    arrays = datasets.load(config.data)
    return {**arrays, **divide(config, arrays)}


def load_labels_and_divide(config: Config) -> Arrays:
    """Return the arrays of `load_and_divide` that a plan needs.

    The test set is missing, and images have no pixels.
    """
    labels = datasets.load_train_labels(config.data)
    arrays = {"train_images": np.empty((len(labels), 0), dtype=np.uint8), "train_labels": labels}
    if (
        config.partition.scheme == "groups"
        and (groups := datasets.load_train_groups(config.data)) is not None
    ):
        arrays["train_groups"] = groups
    return {**arrays, **divide(config, arrays)}
