"""The images that the server has: planned round by round, made or taken from the bank, judged by the filter, and kept."""

import time
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from genfl_mpi.config import functions
from genfl_mpi.data import public
from genfl_mpi.generation.bank import Batch, batches_of_round
from genfl_mpi.generation.classifier import Reader
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.learning.training import normalise
from genfl_mpi.mpi import failing
from genfl_mpi.mpi.schedule import Speed
from genfl_mpi.util.errors import UserError


class Made(NamedTuple):
    """A batch of a round: its key in the bank, the `Batch`, uint8 images (n, C, H, W), and fidelity, float64 (n,), NaN without a
    filter."""

    key: str
    batch: Batch
    images: np.ndarray
    fidelity: np.ndarray


def _pool(config, about, data):
    """(images, labels) of the public pool, the only real images that the server has."""
    chosen = public.pool(data["train_labels"], config.data.public_pool, len(about.classes))
    return data["train_images"][chosen], data["train_labels"][chosen]


def read_pool(config, about, data, device):
    """The filter's classifier: a `Reader` of the public pool."""
    return Reader(*_pool(config, about, data), about, config, device)


class ServerImages:
    """config, about, data, device: as of the `Server`; plan: (`ServerState`) -> int (classes,), images to make of each class in a
    round; ready: (`Batch`) -> whether it need not be made, by default whether it is in the bank.

    made_of_label: int64 (classes,), all that were made so far. new: images made in this round; interrupted: whether they were not
    all made, because the ranks were asked to leave. speed: of generation, in batches a second (a short one takes as long). loading: of
    the generator, in loads a second. is_loaded: whether the generator is.
    """

    def __init__(self, config, about, data, device, plan, ready=None):
        self.config, self.about, self.data, self.device, self.plan = config, about, data, device, plan
        self.made_of_label = np.zeros(len(about.classes), dtype=np.int64)
        self.new, self.interrupted = 0, False
        self.speed, self.loading, self.is_loaded = Speed(), Speed(), False
        self._images, self._labels, self._later, self._normalised = [], [], None, None
        if config.source == "pool":
            self._images, self._labels = ([part] for part in _pool(config, about, data))
        self.generator = None
        if config.generates:
            self.prompts = load_prompts(config.generation.prompts, about.classes)
            self.generator = Generator(config, about.shape)
            self.ready = ready or self.generator.ready

    def __len__(self):
        """Images that models learn from: those that passed the filter, and those of the public pool."""
        return sum(map(len, self._labels))

    def used(self, first=0):
        """uint8 images (n, C, H, W) and int64 labels (n,) that models learn from, beginning with number `first`."""
        images, labels, left = (
            [np.zeros((0, *self.about.shape), dtype=np.uint8)],
            [np.zeros(0, dtype=np.int64)],
            len(self) - first,
        )
        for one, its in zip(reversed(self._images), reversed(self._labels)):
            if left <= 0:
                break
            images.insert(1, one[-left:])
            labels.insert(1, its[-left:])
            left -= len(its)
        return np.concatenate(images), np.concatenate(labels)

    def normalised(self):
        """All of them as a model takes them, on the device: normalised float32 (n, C, H, W), int64 (n,). New ones are added to those
        that are there."""
        count = self._normalised.count if self._normalised else 0
        images, labels = self.used(count)
        if self._normalised is None:
            self._normalised = _Growing(self.device)
        self._normalised.add(
            normalise(torch.from_numpy(images), self.about.mean, self.about.std, self.device),
            torch.from_numpy(labels).to(self.device),
        )
        return self._normalised.arrays()

    def make(self, state, leaving):
        """The images of the round of `state`, from the bank or made now: a list of `Made`. No more of them are made once the function
        `leaving` is true."""
        made = []
        for batch in self._batches(state) if self.config.generates else []:
            if leaving():
                self.interrupted = True
                return made
            images = self._of_batch(batch)
            fidelity = (
                self._filter.fidelity(images, batch.label) if self._filter else np.full(len(batch), np.nan)
            )
            made.append(Made(self.generator.bank.key(batch), batch, images, fidelity))
        for one in made:
            self.add(one.batch.label, one.images, one.fidelity)
        self.new = sum(len(one.batch) for one in made)
        return made

    @cached_property
    def _filter(self):
        return (
            read_pool(self.config, self.about, self.data, self.device)
            if self.config.generation.min_fidelity
            else None
        )

    def make_ahead(self, state, seconds):
        """Make at most one batch of a later round than that of `state`, if it is predicted to fit.

        seconds: that this rank is predicted to wait. Returns False if no batch fits or is left.
        """
        if self._seconds(1) > seconds:
            return False
        self._later = self._later or self._batches_later(state)
        return next(self._later, False)

    def _batches_later(self, state):
        """Make the batches of all later rounds; yields True after each batch, and after each round looked at."""
        for batches in self.batches_from(state, state.round + 1):
            for batch in batches:
                if not self.ready(batch):
                    self._of_batch(batch)
                    yield True
            yield True

    def batches_from(self, state, first):
        """Yields the batches of round `first` (0 is the first of all) and of each later one, as long as the plan can tell, when
        as many images were made as `state` has."""
        for round in range(first, self.config.rounds):
            state = replace(state, round=round, cohort=None)
            counts = self.counts(state)
            if counts is None:
                return
            batches, state = self._batches(state, counts), replace(state, generated=state.generated + counts)
            yield batches

    def add(self, labels, images, fidelity):
        """labels: int (n,); images: uint8 (n, C, H, W); fidelity: float64 (n,), NaN without a filter. All of them count as made;
        models learn from those that pass."""
        used = self.passes(fidelity)
        self._images.append(np.asarray(images)[used])
        self._labels.append(np.asarray(labels, dtype=np.int64)[used])
        self.made_of_label += np.bincount(labels, minlength=len(self.made_of_label))

    def passes(self, fidelity):
        """Whether the filter lets each image through, bool (n,)."""
        return ~(np.asarray(fidelity) < self.config.generation.min_fidelity)

    def counts(self, state):
        """What the plan asks for in the round of `state`: int (classes,), images of each class; None if it cannot tell before the
        cohort is chosen."""
        with failing.named(f"generation.plan {functions.of(self.plan)}"):
            counts = self.plan(state)
        if counts is None and state.cohort is None and self.config.trains_clients:
            return None
        counts, classes = np.asarray(counts), len(self.about.classes)
        if counts.shape != (classes,) or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise UserError(
                f"generation.plan: {self.config.generation.plan} must return how many images to make of each of the {classes} "
                f"classes, as integers, not {counts}"
            )
        return counts

    def _batches(self, state, counts=None):
        """The batches of the round of `state`; counts: what the plan asks for, if that was asked already."""
        counts = self.counts(state) if counts is None else counts
        settings = self.config.generation
        return batches_of_round(counts, state.generated, self.prompts, settings.seed, settings.batch_size)

    def _of_batch(self, batch):
        missing = not self.ready(batch)
        if missing and not self.is_loaded:
            start = time.perf_counter()
            self.generator.load()  # once, which says nothing of the speed
            self.loading.measure(1, time.perf_counter() - start)
            self.is_loaded = True
        start = time.perf_counter()
        images = self.generator.images(batch)
        if missing:
            self.speed.measure(1, time.perf_counter() - start)
        return images

    def _seconds(self, batches):
        """Predicted seconds of making so many batches; infinite for any as long as nothing was measured."""
        return self.speed.seconds(batches) + self.loading.seconds(int(batches and not self.is_loaded))

    def busy_seconds(self, state, speed):
        """Predicted seconds of making the images of the round of `state` and training the augmented model on all; infinite as
        long as nobody knows how long a batch takes. speed: samples a second that rank 0 trains."""
        if not self.config.augments:
            return 0.0
        batches = self._batches(state) if self.config.generates else []
        missing = sum(not self.ready(batch) for batch in batches)
        images = len(self) + sum(map(len, batches))
        return self._seconds(missing) + images * self.config.augmented.epochs / speed


class _Growing:
    """Images and labels on a device, in memory that doubles when it is full, so that adding some does not copy all."""

    def __init__(self, device):
        self.device, self.count, self.images, self.labels = device, 0, None, None

    def add(self, images, labels):
        count = self.count + len(labels)
        if self.images is None or count > len(self.labels):
            before = self.arrays()
            self.images = torch.empty(
                (2 * count, *images.shape[1:]), device=self.device, memory_format=torch.channels_last
            )
            self.labels = torch.empty(2 * count, dtype=torch.int64, device=self.device)
            for whole, part in zip((self.images, self.labels), before):
                whole[: self.count].copy_(part)
        self.images[self.count : count].copy_(images)
        self.labels[self.count : count].copy_(labels)
        self.count = count

    def arrays(self):
        return () if self.images is None else (self.images[: self.count], self.labels[: self.count])
