"""Generated images at the clients: what the server sends them (method=sent), or what they make themselves (method=filled).

Image j of a label is the same in all placements: a function of the seed, the label and j. In a simulation one rank makes it, once,
for all clients that have it, and each rank gets it by broadcast: 1 byte a pixel and channel, once a run, whatever the clients.
"""

import numpy as np
import torch

from genfl_mpi.data import public
from genfl_mpi.data.partition import blocks
from genfl_mpi.edge import incentive
from genfl_mpi.learning.training import normalise
from genfl_mpi.mpi import collectives
from genfl_mpi.util.errors import UserError


def lacking(held, config, share=None):
    """How many images of each label clients lack, int64 (n, classes). held: int (n, classes), samples that each has; share:
    float64 (n,), of each, by default client_generation.share.

    With a share u and m samples of its most frequent label, m C of an even mix, which is R = m C / |D_n| times as many as
    it has, a client makes (m - m_c) u / (u + (1 - u) R) of label c: its mix is then (1 - u) its own and u even. With
    client_generation.labels=missing u m of each label that it lacks.
    """
    settings = config.client_generation
    held = np.asarray(held, dtype=np.int64)
    most, total = held.max(1, keepdims=True), held.sum(1, keepdims=True)
    share = settings.share if share is None else share[:, None]
    if settings.labels == "missing":
        wanted = share * most * (held == 0)
    else:
        ratio = most * held.shape[1] / np.maximum(total, 1)
        wanted = (most - held) * (share / (share + (1 - share) * ratio))
    return np.floor(wanted + 0.5).astype(np.int64)


def capped(wanted, config):
    """How many images of each label clients make who lack `wanted`, int (n, classes): generation.cap at most, of a label, or with
    count=total of all."""
    cap = config.generation.cap
    if config.generation.count == "class":
        return np.minimum(wanted, cap)
    whole = wanted.sum(1, keepdims=True)
    return np.where(whole > cap, wanted * cap // np.maximum(whole, 1), wanted)


class ClientImages:
    """What each client has beside its own data. config: `Config`; about: the data set's `Description`; data: the arrays of
    `load_and_divide`; image_joules: what an image takes the client that makes it, if its price decides how many these are."""

    def __init__(self, config, about, data, image_joules=None):
        self.config, self.about, self.data, self.classes = config, about, data, len(about.classes)
        self.image_joules = image_joules
        # Of all images that were made so far: pixels, labels, and how many of the label there are before it.
        self.images, self.labels, self.place = (
            np.zeros((0, *about.shape), dtype=np.uint8),
            *np.zeros((2, 0), dtype=np.int64),
        )
        self.sent = None  # with method=sent, what every client has beside its own data, normalised
        self.bytes = 0  # of the last round's messages

    def real(self, clients=slice(None)):
        """Real samples of each label, with the shared ones: int (n, classes)."""
        return self.data["label_histograms"][clients] + public.counts(self.config.data.shared, self.classes)

    def share(self, clients):
        """Which share of the gap between its labels and an even mix each client fills, float64 (n,): its best response to the
        price, or client_generation.share; 0 with other methods."""
        if self.config.fills and self.config.incentive.price is not None:
            told = incentive.clients_of(self.real(clients), 0.0, self.image_joules)
            return incentive.best_response(told, self.config.incentive.price)
        return np.full(
            len(self.real(clients)), self.config.client_generation.share if self.config.fills else 0.0
        )

    def generated(self, clients):
        """Images of each label that each of `clients` trains on, as far as they are made: int64 (n, classes)."""
        there = np.bincount(self.labels, minlength=self.classes)
        if self.config.fills:
            return np.minimum(self.makes(clients, self.share(clients)), there)
        return np.tile(there if self.config.sends else 0 * there, (len(clients), 1))

    def makes(self, clients, share):
        """With method=filled, images of each label that each of `clients` makes who fills a share, float64 (n,), of its gap: int64
        (n, classes). Raises UserError if generation.cap keeps one from what it is paid for."""
        wanted = lacking(self.real(clients), self.config, share)
        found = capped(wanted, self.config)
        if self.config.incentive.price is not None and (found < wanted).any():
            raise UserError(
                f"generation.cap={self.config.generation.cap} keeps clients from the images that incentive.price pays "
                "for: raise it"
            )
        return found

    def demand(self):
        """With method=filled, (int64 (clients,), images that each makes; int64 (classes,), the most that one makes of each
        label; float64 (clients,), the share of its gap that each fills). Raises UserError as `makes` does."""
        clients = self.config.clients
        each, most, share = (
            np.zeros(clients, dtype=np.int64),
            np.zeros(self.classes, dtype=np.int64),
            np.zeros(clients),
        )
        for block in blocks(clients):
            share[block] = self.share(block)
            made = self.makes(block, share[block])
            each[block] = made.sum(1)
            most = np.maximum(most, made.max(0))
        return each, most, share

    def beside(self, client, images, labels):
        """A client's data, normalised float32 (n, C, H, W) and int64 (n,) on a device, with its generated images behind."""
        count = self.generated(np.array([client]))[0]
        if not count.any():
            return images, labels
        if self.config.fills:
            own, theirs = self._normalised(self.place < count[self.labels], images.device)
        else:  # all have the same
            own, theirs = self.sent = self.sent or self._normalised(slice(None), images.device)
        return torch.cat([images, own]), torch.cat([labels, theirs])

    def _normalised(self, chosen, device):
        own = normalise(torch.from_numpy(self.images[chosen]), self.about.mean, self.about.std, device)
        return own, torch.from_numpy(self.labels[chosen]).to(device)

    def exchange(self, comm, server_images):
        """Bring the images that are new at the server to every rank. server_images: `ServerImages` on rank 0, elsewhere None. Collective."""
        images, labels, count = self.images[:0], self.labels[:0], np.zeros(1, dtype=np.int64)
        if server_images is not None:
            images, labels = server_images.used(len(self.labels))
            count[0] = len(labels)
        self.bytes = 0
        self._broadcast(comm, count)
        if count[0]:
            if server_images is None:
                images, labels = (
                    np.empty((count[0], *images.shape[1:]), dtype=np.uint8),
                    np.empty(count[0], dtype=np.int64),
                )
            self._broadcast(comm, images.reshape(-1), labels)
            self.images, self.labels = (
                np.concatenate([self.images, images]),
                np.concatenate([self.labels, labels]),
            )
            self.place, self.sent = np.empty_like(self.labels), None
            for label in range(self.classes):
                mine = self.labels == label
                self.place[mine] = np.arange(mine.sum())

    def exchange_plan(self, comm, plan):
        """Bring the `plan` of the `Broadcast` message to every rank, where it had to wait for the images. Collective."""
        self._broadcast(comm, plan)

    def _broadcast(self, comm, *arrays):
        for array in arrays:
            collectives.broadcast(comm, array)
            self.bytes += array.nbytes
