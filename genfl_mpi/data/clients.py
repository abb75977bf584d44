"""The clients' data: who holds what, what it tells of its labels, and what it trains on."""

import math
import os

import numpy as np

from genfl_mpi.data import datasets, public
from genfl_mpi.data.corruption import draw_misbehaving, mislabel, overclaim, spoil
from genfl_mpi.data.labels import label_histograms, share, tells
from genfl_mpi.data.partition import blocks, partition
from genfl_mpi.mpi import collectives
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError


def client_data(data, client, config):
    """What a client trains on: uint8 images (n, C, H, W) and int64 labels (n,), with its camera's and its hand's mistakes,
    and behind its own the shared ones of the public pool."""
    samples, labels = client_samples(data, client, config)
    images = data["train_images"][samples]
    if is_spoiled(data, client, config):
        own = len(images) - config.data.shared
        images[:own] = spoil(
            images[:own], config.misbehaving_clients.kind, streams.generator(config.seed, "spoil", client)
        )
    return images, labels


def client_samples(data, client, config):
    """Where a client's images are in the training set, int (n,), and their labels, int64 (n,)."""
    own = slice(data["pointers"][client], data["pointers"][client + 1])
    samples, labels = data["indices"][own], data["client_labels"][own].astype(np.int64)
    if config.data.shared:
        given = data["given"]
        samples, labels = (
            np.concatenate([samples, given]),
            np.concatenate([labels, data["train_labels"][given]]),
        )
    return samples, labels


def is_spoiled(data, client, config):
    """Whether a client's own images are other than those of the training set."""
    return data["misbehaving"][client] and config.misbehaving_clients.kind in ("blurred", "noisy")


def noise_of_free_rider(data, client, config):
    """Standard deviation of the noise under which a client returns the global model in place of training; None if it trains."""
    kinds = {"free_rider": 0.0, "disguised": config.misbehaving_clients.noise}
    return kinds.get(config.misbehaving_clients.kind) if data["misbehaving"][client] else None


def check_memory(config):
    """Raise UserError if this machine has less memory than the data set and its division over the clients take at least."""
    data, split, about = config.data, config.partition, datasets.describe(config.data)
    held = config.clients * split.samples if split.replacement else about.train_samples
    named = f"data.name={data.name}" + f" with data.size={data.size}" * (data.name in ("folder", "synthetic"))
    division = f"clients={config.clients}" + f" with partition.samples={split.samples}" * split.replacement
    taken = {  # a byte a value of an image, 8 a label; 4 a sample of a client, and 8 a class: its histogram, and what it shares of it
        f"the {about.train_samples} training images of {named}": about.train_samples
        * (math.prod(about.shape) + 8),
        f"the samples of all clients, with {division},": 4 * held + 8 * len(about.classes) * config.clients,
    }
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for what, size in taken.items():
        if size > there:
            raise UserError(
                f"{what} take {size / 1e9:,.0f} GB of memory, and this machine has {there / 1e9:,.0f} GB; use fewer, or smaller ones"
            )


def load_once_a_node(comm, data):
    """The arrays of the data set config.data, read once a node and shared there, and the window that keeps them. Collective."""
    if data.download:
        collectives.together(comm, lambda: comm.rank == 0 and datasets.download(data))
    return collectives.node_shared(comm, lambda: datasets.load(data))


def divide(config, arrays):
    """The clients' slices of the data set `arrays`, and their label histograms: arrays that a node holds once, too.

    What remains of the training set after the public pool is divided over the clients.
    """
    classes = len(datasets.describe(config.data).classes)
    labels = arrays["train_labels"]
    held = np.setdiff1d(
        np.arange(len(labels), dtype=np.int32), public.pool(labels, config.data.public_pool, classes)
    )
    pointers, indices = partition(labels[held], config.clients, classes, config.partition, config.seed)
    for block in blocks(len(indices)):
        indices[block] = held[indices[block]]
    client_labels = labels.astype(np.min_scalar_type(classes))[indices]
    bad = draw_misbehaving(config.clients, config.misbehaving_clients, config.seed)
    if config.misbehaving_clients.kind == "mislabelled":
        for client in np.flatnonzero(bad):
            own = slice(pointers[client], pointers[client + 1])
            client_labels[own] = mislabel(
                client_labels[own], classes, streams.generator(config.seed, "spoil", client)
            )
    histograms = label_histograms(client_labels, pointers, classes)
    claims = histograms
    if config.misbehaving_clients.kind == "overclaiming":
        claims = np.where(bad[:, None], overclaim(histograms), histograms)
    shared, told = share(claims, config.label_sharing, config.seed)
    told &= tells(config.clients, config.incentive, config.seed)
    shared[~told] = 0
    given = {"given": public.pool(labels, config.data.shared, classes)} if config.data.shared else {}
    return {
        **given,
        "pointers": pointers,
        "indices": indices,
        "client_labels": client_labels,
        "misbehaving": bad,
        "label_histograms": histograms,
        "shared_labels": shared,
        "told": told,
    }


def load_and_divide(config):
    """All arrays of a run: the data set, and what `divide` makes of it."""
    arrays = datasets.load(config.data)
    return {**arrays, **divide(config, arrays)}
