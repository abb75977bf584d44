"""Evaluate models on data that are divided over the ranks: the test set, a part of it, or validation data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch

from genfl_mpi.data import public
from genfl_mpi.data.clients import client_data
from genfl_mpi.learning.batches import on_device
from genfl_mpi.learning.evaluation import chunks, evaluate, summarise
from genfl_mpi.mpi import collectives
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.server_images import ServerImages
    from genfl_mpi.learning.weights import FlatModel
    from genfl_mpi.mpi.collectives import MPI

Summary: TypeAlias = tuple[float, float, np.ndarray]

MAX_CHUNKS = 2**20  # of validation data on all ranks


class Evaluation(NamedTuple):
    """Evaluation of the global model after a round; NaN for what was not due.

    accuracy_per_class: float64 (classes,). subset_accuracy, subset_loss: on `Evaluator.subset`.
    """

    accuracy: float
    loss: float
    accuracy_per_class: np.ndarray
    subset_accuracy: float = np.nan
    subset_loss: float = np.nan


def is_due(config: Config, round: int) -> bool:
    """Return whether a round ends with an evaluation on the whole test set. round: starts at 1."""
    return round % config.evaluation.every == 0 and round % config.time.cloud_every == 0


class Evaluator:
    """Evaluate models on all ranks. Sums are of integers, so they do not depend on the number of ranks.

    comm: the ranks. data: the run's arrays. model: the rank's `FlatModel`, which is overwritten. plan: of the
    `Broadcast` message. server_images: on rank 0 the `ServerImages`, elsewhere None. test_images: of the
    `Resident`, or None.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        config: Config,
        about: Description,
        data: dict[str, np.ndarray],
        model: FlatModel,
        plan: np.ndarray,
        server_images: ServerImages | None,
        test_images: torch.Tensor | None = None,
    ) -> None:
        self.comm, self.config, self.about, self.data = comm, config, about, data
        self.model, self.plan, self.server_images = model, plan, server_images
        self.test_images = test_images

    @cached_property
    def subset(self) -> np.ndarray:
        """The test samples that are evaluated in every round, int (n,), the same for all seeds."""
        return self._sample(0, "test subset", len(self.data["test_labels"]), self.config.evaluation.subset)

    def evaluate(self, omega: torch.Tensor, round: int) -> Evaluation:
        """Evaluate the global model after a round as far as it is due. Collective.

        omega: float32 (size,), on the model's device. round: starts at 1.
        """
        settings, due = self.config.evaluation, is_due(self.config, round)
        sources = ["test"] * due + ["subset"] * (settings.every > 1 and settings.subset > 0)
        unknown = np.nan, np.nan, np.full(len(self.about.classes), np.nan)
        found = {"test": unknown, "subset": unknown} | self._evaluate(omega, sources)
        return Evaluation(*found["test"], *found["subset"][:2])

    def test(self, weights: torch.Tensor) -> Summary:
        """Return (accuracy, loss, accuracy per class) of a model on the whole test set. Collective.

        weights: float32 (size,).
        """
        return self._evaluate(weights, ["test"])["test"]

    def _evaluate(self, weights: torch.Tensor, sources: Sequence[str]) -> dict[str, Summary]:
        """Evaluate a model on "test" or "subset" or both, with one sum over the ranks."""
        if not sources:
            return {}
        totals = np.stack([self.count(weights, source) for source in sources])
        collectives.sum_everywhere(self.comm, totals)
        return {source: self.summarise(row[:-1], source) for source, row in zip(sources, totals)}

    def summarise(self, totals: np.ndarray, source: str = "test") -> Summary:
        """Return (accuracy, loss, accuracy per class) from totals that are summed over the ranks.

        totals: int64 (classes + 1,), as `evaluation.evaluate` returns them.
        """
        labels = self.data["test_labels"]
        evaluated = labels if source == "test" else labels[self.subset]
        return summarise(totals, np.bincount(evaluated, minlength=len(self.about.classes)))

    def count(self, weights: torch.Tensor, source: str) -> np.ndarray:
        """Evaluate a model on this rank's part of the data.

        weights: float32 (size,). source: test, subset, or one of config.validation. Returns int64 (classes +
        2,): the totals of `evaluation.evaluate`, then the number of samples.
        """
        self.model.load(weights)
        device, samples = self.model.weights.device, 0

        def normalised() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            nonlocal samples
            for images, labels in self._share(source):
                samples += len(labels)
                yield from chunks(images, labels, self.config.evaluation.batch_size, self.about, device)

        capped = self.config.faults.nonfinite == "drop"  # the global model may diverge, and the run goes on
        totals = evaluate(
            self.model, normalised(), len(self.about.classes), self._count_chunks(source), capped
        )
        return np.append(totals, samples)

    def _count_chunks(self, source: str) -> int:
        """Return how many chunks all ranks together evaluate at most, for the sum of the losses."""
        samples = {"test": len(self.data["test_labels"]), "subset": self.config.evaluation.subset}
        return -(-samples[source] // self.config.evaluation.batch_size) if source in samples else MAX_CHUNKS

    def _share(self, source: str) -> Iterator[tuple[np.ndarray | torch.Tensor, np.ndarray]]:
        """Yield this rank's part of the data, in pieces (uint8 images, int64 labels)."""
        if source == "clients":
            for client, rank in zip(self.plan["client"].tolist(), self.plan["rank"].tolist()):
                if rank == self.comm.rank:
                    yield client_data(self.data, client, self.config)
        elif source == "generated":
            if self.server_images:
                images, labels = self.server_images.training_images()
                chosen = self._sample_validation(len(labels))
                yield images[chosen], labels[chosen]
        elif source == "pool":
            labels = self.data["train_labels"]
            pool = public.public_pool(labels, self.config.data.public_pool, len(self.about.classes))
            chosen = pool[self._sample_validation(len(pool))]
            for part in self._parts(len(chosen)):
                yield self.data["train_images"][chosen[part]], labels[chosen[part]]
        else:
            labels = self.data["test_labels"]
            subset = self.subset if source == "subset" else None
            for part in self._parts(len(labels) if subset is None else len(subset)):
                samples = part if subset is None else subset[part]
                yield self._test_images(samples), labels[samples]

    def _test_images(self, samples: slice | np.ndarray) -> np.ndarray | torch.Tensor:
        """Return test images, from the device if they are there."""
        if self.test_images is None:
            return self.data["test_images"][samples]
        if isinstance(samples, slice):
            return self.test_images[samples]
        return self.test_images[on_device(samples, self.test_images.device)]

    def _parts(self, count: int) -> Iterator[slice]:
        """Yield this rank's chunks of `count` samples."""
        size = self.config.evaluation.batch_size
        for start in range(self.comm.rank * size, count, self.comm.size * size):
            yield slice(start, start + size)

    def _sample_validation(self, count: int) -> np.ndarray:
        return self._sample(self.config.seed, "validation", count, self.config.validation.samples)

    @staticmethod
    def _sample(seed: int, purpose: str, count: int, samples: int) -> np.ndarray:
        """Draw at most `samples` integers below `count`, in ascending order."""
        return np.sort(streams.generator(seed, purpose).permutation(count)[:samples])
