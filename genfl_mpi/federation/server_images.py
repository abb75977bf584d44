"""The server's images: planned round by round, taken from the bank or generated, filtered, and kept."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from genfl_mpi.config import functions
from genfl_mpi.data import public
from genfl_mpi.federation.policies import UNSET
from genfl_mpi.federation.shared_generation import IN_BANK, Division, Generators, Report
from genfl_mpi.generation.bank import Batch, batches_of_round
from genfl_mpi.generation.classifier import ImageClassifier
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.learning.batches import memory_format
from genfl_mpi.learning.training import normalise
from genfl_mpi.mpi.schedule import Speed
from genfl_mpi.util.errors import UserError, annotate_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Set as AbstractSet

    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.policies import ServerState


class Made(NamedTuple):
    """A batch of a round's images.

    key: of the batch in the bank. images: uint8 (n, C, H, W). fidelity: float64 (n,), NaN without a filter.
    """

    key: str
    batch: Batch
    images: np.ndarray
    fidelity: np.ndarray


def _pool(config: Config, about: Description, data: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (images, labels) of the public pool, the only real images that the server has."""
    chosen = public.public_pool(data["train_labels"], config.data.public_pool, len(about.classes))
    return data["train_images"][chosen], data["train_labels"][chosen]


def train_pool_classifier(
    config: Config, about: Description, data: dict[str, np.ndarray], device: torch.device
) -> ImageClassifier:
    """Train the filter's classifier on the public pool."""
    return ImageClassifier(*_pool(config, about, data), about, config, device)


class ServerImages:
    """Plan, generate and keep the images of the server.

    config, about, data, device: as of the `Server`. plan: (`ServerState`) -> int (classes,), images to
    generate of each class in a round. planned: batches that count as generated besides those in the bank, for
    a prediction. able: bool (ranks,), the ranks that may generate, by default rank 0 alone.

    made_of_label: int64 (classes,), images generated so far. new: images of this round; from_bank: those of
    them that this object did not generate; bank_seconds: to read images of the round from the bank. speed: of
    generation, in batches a second (a short batch takes as long). loading: of the generator, in loads a
    second. generators: of all ranks. division: of the round's batches over the ranks; None if rank 0 makes
    all.
    """

    def __init__(
        self,
        config: Config,
        about: Description,
        data: dict[str, np.ndarray],
        device: torch.device,
        plan: Callable[[ServerState], np.ndarray],
        planned: AbstractSet[Batch] = frozenset(),
        able: np.ndarray | None = None,
    ) -> None:
        self.config, self.about, self.data, self.device, self.plan = config, about, data, device, plan
        self.planned = planned
        self.made_of_label = np.zeros(len(about.classes), dtype=np.int64)
        self.new, self.from_bank, self.bank_seconds = 0, 0, 0.0
        self._generated: set[Batch] = set()
        able = np.ones(1, dtype=bool) if able is None else able
        self.generators = Generators(able, [Speed() for _ in able], Speed())
        self.speed, self.loading = self.generators.speeds[0], self.generators.loading
        self.division: Division | None = None
        self._images: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._later: Iterator[bool] | None = None
        self._normalised: _Growing | None = None
        if config.source == "pool":
            self._images, self._labels = ([part] for part in _pool(config, about, data))
        if config.generates:
            self.prompts = load_prompts(config.generation.prompts, about.classes)
            self.generator = Generator(config, about.shape)

    @property
    def is_loaded(self) -> bool:
        """Whether the generator is loaded on rank 0."""
        return bool(self.generators.is_loaded[0])

    def __len__(self) -> int:
        """Count the images that models learn from: accepted by the filter, or of the public pool."""
        return sum(map(len, self._labels))

    def training_images(self, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the images that models learn from, uint8 (n, C, H, W), and their labels, int64 (n,).

        first: number of the image to begin with.
        """
        images = [np.zeros((0, *self.about.shape), dtype=np.uint8)]
        labels, left = [np.zeros(0, dtype=np.int64)], len(self) - first
        for one, its in zip(reversed(self._images), reversed(self._labels)):
            if left <= 0:
                break
            images.insert(1, one[-left:])
            labels.insert(1, its[-left:])
            left -= len(its)
        return np.concatenate(images), np.concatenate(labels)

    def normalised(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return them all, on the device and normalised: float32 (n, C, H, W), int64 (n,).

        Only images that are new since the last call are copied there.
        """
        count = self._normalised.count if self._normalised else 0
        images, labels = self.training_images(count)
        if self._normalised is None:
            self._normalised = _Growing(self.device)
        self._normalised.add(
            normalise(torch.from_numpy(images), self.about.mean, self.about.std, self.device),
            torch.from_numpy(labels).to(self.device),
        )
        return self._normalised.arrays()

    def make(
        self, state: ServerState, leaving: Callable[[], int], note: Callable[..., object]
    ) -> tuple[list[Made], bool]:
        """Take the images of the round of `state` from the bank, or generate them.

        note: called as note("generate", done=images, of=images) before each batch.

        Returns a `Made` for each batch, and whether the work was interrupted: it stops as soon as `leaving()`
        is true, and the server then keeps none of the round's images.
        """
        made, left = self.collect(state, leaving, note)
        if not left:
            self.keep(made)
        return made, left

    def collect(
        self, state: ServerState, leaving: Callable[[], int], note: Callable[..., object]
    ) -> tuple[list[Made], bool]:
        """Do as `make`, and keep no image."""
        made: list[Made] = []
        self.from_bank, self.bank_seconds = 0, 0.0
        batches = self._batches(state) if self.config.generates else []
        for batch in batches:
            if leaving():
                return made, True
            note("generate", done=sum(len(one.batch) for one in made), of=sum(map(len, batches)))
            images = self._make_batch(batch)
            fidelity = (
                self._filter.fidelity(images, batch.label) if self._filter else np.full(len(batch), np.nan)
            )
            made.append(Made(self.generator.bank.key(batch), batch, images, fidelity))
        return made, False

    def keep(self, made: list[Made]) -> None:
        """Add the images of a round."""
        for one in made:
            self.add(one.batch.label, one.images, one.fidelity)
        self.new = sum(len(one.batch) for one in made)

    def restore(self, generated: dict[str, np.ndarray]) -> None:
        """Add the images of earlier rounds. generated: columns of /generated."""
        self.add(*(generated[name] for name in ("label", "image", "fidelity")))

    @cached_property
    def _filter(self) -> ImageClassifier | None:
        """The classifier that judges generated images, or None if all are used."""
        if not self.config.generation.min_fidelity:
            return None
        return train_pool_classifier(self.config, self.about, self.data, self.device)

    def make_ahead(self, state: ServerState, seconds: float) -> bool:
        """Generate at most one batch of a round after that of `state`, if it is predicted to fit.

        seconds: predicted waiting time of this rank. Returns False if no batch fits or remains.
        """
        if not self.config.generates or self._seconds(1) > seconds:
            return False
        self._later = self._later or self._batches_later(state)
        return next(self._later, False)

    def _batches_later(self, state: ServerState) -> Iterator[bool]:
        """Generate the batches of all later rounds. Yields True after each batch and after each round."""
        for batches in self.batches_from(state, state.round + 1):
            for batch in batches:
                if not self.is_made(batch):
                    self._make_batch(batch)
                    yield True
            yield True

    def batches_from(self, state: ServerState, first: int) -> Iterator[list[Batch]]:
        """Yield the batches of round `first` (0 is the first round) and of each later round.

        Starts from the number of images in `state`, and ends at a round whose plan depends on the cohort.
        """
        for round in range(first, self.config.rounds):
            state = replace(state, round=round, cohort=UNSET)
            counts = self.counts(state)
            if counts is None:
                return
            batches, state = self._batches(state, counts), replace(state, generated=state.generated + counts)
            yield batches

    def add(self, labels: np.ndarray | tuple[int, ...], images: np.ndarray, fidelity: np.ndarray) -> None:
        """Add generated images. All count as generated; models learn from those that pass the filter.

        labels: int (n,); images: uint8 (n, C, H, W); fidelity: float64 (n,), NaN without a filter.
        """
        used = self.passes(fidelity)
        self._images.append(np.asarray(images)[used])
        self._labels.append(np.asarray(labels, dtype=np.int64)[used])
        self.made_of_label += np.bincount(labels, minlength=len(self.made_of_label))

    def passes(self, fidelity: np.ndarray) -> np.ndarray:
        """Return whether each image passes the filter, bool (n,)."""
        return ~(np.asarray(fidelity) < self.config.generation.min_fidelity)

    def is_due(self, round: int) -> bool:
        """Return whether images are made, and used, in a round: 0 is the first."""
        return (round + 1) % self.config.time.cloud_every == 0

    def counts(self, state: ServerState) -> np.ndarray | None:
        """Return the images of each class that the plan wants in the round of `state`, int (classes,).

        With tiers the cloud generates only in the round of its average. None if the plan depends on the
        cohort, which is not chosen yet. Raises UserError if the plan returns anything else.
        """
        if not self.is_due(state.round):
            return np.zeros(len(self.about.classes), dtype=np.int64)
        with annotate_errors(f"generation.plan {functions.name_of(self.plan)}"):
            counts = self.plan(state)
        if counts is None and state.cohort is None and self.config.trains_clients:
            return None
        counts, classes = np.asarray(counts), len(self.about.classes)
        if counts.shape != (classes,) or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise UserError(
                f"generation.plan: {self.config.generation.plan} must return the number of images of each of "
                f"the {classes} classes, as integers, not {counts}"
            )
        return counts

    def _batches(self, state: ServerState, counts: np.ndarray | None = None) -> list[Batch]:
        """Return the batches of the round of `state`. counts: of `counts`, if already known."""
        counts = self.counts(state) if counts is None else counts
        settings = self.config.generation
        seed = self.config.seed if settings.seed is None else settings.seed
        return batches_of_round(
            counts,  # type: ignore[arg-type]  # not None: once the cohort is chosen, every plan is known
            state.generated,
            self.prompts,
            seed,
            settings.batch_size,
        )

    def _make_batch(self, batch: Batch) -> np.ndarray:
        """Return the images of a batch, and measure how fast they are generated."""
        missing = not self.is_made(batch)
        if missing and not self.is_loaded:
            start = time.perf_counter()
            self.generator.load()  # once; the speed of generation does not include it
            self.loading.measure(1, time.perf_counter() - start)
            self.generators.is_loaded[0] = True
        start = time.perf_counter()
        images = self.generator.images(batch)
        seconds = time.perf_counter() - start
        if missing:
            self.speed.measure(1, seconds)
            self._generated.add(batch)
        else:
            self.bank_seconds += seconds
            self.from_bank += len(batch) * (batch not in self._generated)  # else it was made ahead
        return images

    def divide(self, state: ServerState) -> None:
        """Divide the round's missing batches over the ranks that may generate: set `division`."""
        self.division = None
        if not self.config.generates or self.generators.able.sum() < 2:
            return
        missing = np.array([not self.is_made(batch) for batch in self._batches(state)], dtype=bool)
        left = self.config.rounds - state.round
        self.division = self.generators.divide(*self.requested(state), missing, left)

    def requested(self, state: ServerState) -> tuple[np.ndarray, np.ndarray]:
        """Return the images to generate, and those generated before, as of `Division`."""
        return np.array([self.counts(state)]), state.generated[None].copy()

    def note_shared(self, state: ServerState, report: Report) -> None:
        """Note a shared generation: its rates, and that its batches did not come from the bank."""
        self.generators.measure(report)
        if self.division:
            made = zip(self._batches(state), self.division.ranks)
            self._generated.update(batch for batch, rank in made if rank != IN_BANK)

    def is_made(self, batch: Batch) -> bool:
        """Return whether a batch need not be generated."""
        return batch in self.planned or self.generator.has(batch)

    def _seconds(self, batches: int) -> float:
        """Predict the seconds to generate some batches: infinite as long as nothing was measured."""
        return self.speed.seconds(batches) + self.loading.seconds(int(batches and not self.is_loaded))

    def generation_seconds(self, state: ServerState) -> float:
        """Predict the seconds in which rank 0 generates the round's missing batches; infinite at first."""
        return self._seconds(sum(not self.is_made(batch) for batch in self._batches(state)))

    def busy_seconds(self, state: ServerState, speed: float) -> float:
        """Predict the seconds to generate the images of a round and to train the augmented model.

        Without generation if the ranks share it. Infinite if a batch has to be generated and none was
        measured. speed: samples a second that rank 0 trains.
        """
        if not self.config.has_server_images:
            return 0.0
        batches = self._batches(state) if self.config.generates else []
        missing = 0 if self.division else sum(not self.is_made(batch) for batch in batches)
        augments = self.config.augments and self.is_due(state.round)
        images = (len(self) + sum(map(len, batches))) * augments
        return self._seconds(missing) + images * self.config.augmented.epochs / speed


class _Growing:
    """Images and labels on a device, in memory that doubles when it is full."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.count = device, 0
        self.images = self.labels = torch.empty(0, device=device)

    def add(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        count = self.count + len(labels)
        if not self.count or count > len(self.labels):
            before = self.arrays() if self.count else ()
            self.images = torch.empty(
                (2 * count, *images.shape[1:]), device=self.device, memory_format=memory_format(images)
            )
            self.labels = torch.empty(2 * count, dtype=torch.int64, device=self.device)
            for whole, part in zip((self.images, self.labels), before):
                whole[: self.count].copy_(part)
        self.images[self.count : count].copy_(images)
        self.labels[self.count : count].copy_(labels)
        self.count = count

    def arrays(self) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.images[: self.count], self.labels[: self.count])
