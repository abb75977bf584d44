"""The images that a run generates: planned round by round, made or taken from the bank, judged by the filter, and kept."""

import time
from dataclasses import replace
from functools import cached_property

import numpy as np

from genfl_mpi.config import functions
from genfl_mpi.data import public
from genfl_mpi.generation.bank import batches_of_round
from genfl_mpi.generation.classifier import Reader
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.mpi import failing
from genfl_mpi.mpi.schedule import Speed
from genfl_mpi.util.errors import UserError


def _pool(config, about, data):
    """(images, labels) of the public pool, the only real images that the server has."""
    chosen = public.pool(data["train_labels"], config.data.public_pool, len(about.classes))
    return data["train_images"][chosen], data["train_labels"][chosen]


def read_pool(config, about, data, device):
    """The filter's classifier: a `Reader` of the public pool."""
    return Reader(*_pool(config, about, data), about, config, device)


class Generated:
    """config, about, data, device: as of the `Server`; plan: of `find_policies`.

    images, labels: uint8 (n, C, H, W) and int64 (n,) in pieces, those that pass the filter; with method=pool, its images.
    of_label: int64 (classes,), all that were made so far. fresh: images of this round; interrupted: whether they were not all
    made, in order to leave. speed: of generation, in batches a second (a short one takes as long).
    loading: of the generator, in loads a second. is_loaded: whether the generator is.
    """

    def __init__(self, config, about, data, device, plan):
        self.config, self.about, self.data, self.device, self.plan = config, about, data, device, plan
        self.images, self.labels, self.of_label = [], [], np.zeros(len(about.classes), dtype=np.int64)
        self.fresh, self.interrupted, self._ahead = 0, False, None
        self.speed, self.loading, self.is_loaded = Speed(), Speed(), False
        if config.method == "pool":
            self.images, self.labels = ([part] for part in _pool(config, about, data))
        if config.generates:
            self.prompts = load_prompts(config.generation.prompts, about.classes)
            self.generator = Generator(config, about.shape)

    def __len__(self):
        return sum(map(len, self.labels))

    def make(self, state, leaving):
        """Images of the round of `state`, from the bank or made now. Returns (key, batch, uint8 images, fidelity) of each
        batch; no more of them once the function `leaving` is true."""
        made = []
        for batch in self._batches(state) if self.config.generates else []:
            if leaving():
                self.interrupted = True
                return made
            images = self._images(batch)
            fidelity = self._filter.fidelity(images, batch.label) if self._filter else np.full(len(batch), np.nan)
            made.append((self.generator.bank.key(batch), batch, images, fidelity))
        for _, batch, images, fidelity in made:
            self.add(batch.label, images, fidelity)
        self.fresh = sum(len(batch) for _, batch, _, _ in made)
        return made

    @cached_property
    def _filter(self):
        return read_pool(self.config, self.about, self.data, self.device) if self.config.generation.min_fidelity else None

    def ahead(self, state, seconds):
        """Make at most one batch of a later round than that of `state`, if it is predicted to fit.

        seconds: that this rank is predicted to wait. Returns False if no batch fits or is left.
        """
        if self._seconds(1) > seconds:
            return False
        self._ahead = self._ahead or self._later(state)
        return next(self._ahead, False)

    def _later(self, state):
        """Make the batches of all later rounds; yields True after each batch, and after each round looked at."""
        for batches in self.batches_from(state, state.round + 1):
            for batch in batches:
                if not self.generator.ready(batch):
                    self._images(batch)
                    yield True
            yield True

    def batches_from(self, state, first):
        """Yields the batches of round `first` (0 is the first of all) and of each later one, as long as the plan can tell, when
        so many images were made as `state` has."""
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
        self.images.append(np.asarray(images)[used])
        self.labels.append(np.asarray(labels, dtype=np.int64)[used])
        self.of_label += np.bincount(labels, minlength=len(self.of_label))

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
            raise UserError(f"generation.plan: {self.config.generation.plan} must return how many images to make of each of the {classes} "
                            f"classes, as integers, not {counts}")
        return counts

    def _batches(self, state, counts=None):
        """The batches of the round of `state`; counts: what the plan asks for, if that was asked already."""
        counts = self.counts(state) if counts is None else counts
        settings = self.config.generation
        return batches_of_round(counts, state.generated, self.prompts, settings.seed, settings.batch_size)

    def _images(self, batch):
        missing = not self.generator.ready(batch)
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
        missing = sum(not self.generator.ready(batch) for batch in batches)
        images = len(self) + sum(map(len, batches))
        return self._seconds(missing) + images * self.config.augmented.epochs / speed
