"""The questions of policies and of the laboratory.

They evaluate a model on data divided over the ranks, or average models of the cohort. Averages need these
models, which the ranks that trained them keep until the round's sum (4 bytes a weight and client).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.data import public
from genfl_mpi.data.clients import client_data
from genfl_mpi.federation import teachers
from genfl_mpi.federation.questions import Question
from genfl_mpi.learning.evaluation import chunks, evaluate, summarise
from genfl_mpi.learning.geometry import cosine
from genfl_mpi.learning.weights import ExactSum, check_sum
from genfl_mpi.util import streams

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.datasets import Description
    from genfl_mpi.federation.questions import Ask
    from genfl_mpi.federation.server_images import ServerImages
    from genfl_mpi.federation.worker import Worker
    from genfl_mpi.learning.weights import FlatModel
    from genfl_mpi.mpi.collectives import MPI

MAX_CHUNKS = 2**20  # bounds the number of chunks that all ranks together evaluate, for the sum of the losses


def make_questions(
    comm: MPI.Comm,
    config: Config,
    about: Description,
    data: dict[str, np.ndarray],
    model: FlatModel,
    plan: np.ndarray,
    server_images: ServerImages | None,
    worker: Worker,
) -> dict[str, Question]:
    """Return the questions of a run by name.

    judge: if the run has validation data; test: if it has a laboratory; average and cosines: if a rho policy
    needs the clients' models; logits, made: if anything may need them. data: the run's arrays; model: the
    rank's `FlatModel`, which is overwritten; plan: of the `Broadcast` message; server_images: on rank 0 the
    `ServerImages`, elsewhere None; worker: the rank's `Worker`.
    """
    evaluation = partial(_evaluation, comm, config, about, data, model, plan, server_images)
    found = {}
    if config.validation.source != "none":
        found["judge"] = evaluation(config.validation.source)
    if config.hindsight.every is not None:
        found["test"] = evaluation("test")
    if worker.delays:
        found["average"] = _average(worker.kept, len(model.weights), len(plan))
        found["cosines"] = _cosines(worker.kept, worker.resident.omega, model.parameters, len(plan))
    if worker.keeps:
        shape = worker.algorithm.asks(config)
        found |= teachers.questions(model, about, worker.kept, len(plan), shape)
    return found


class Trials:
    """Ask these questions on rank 0. ask: from `Questions.session`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def judge(self, weights: np.ndarray) -> tuple[float, float]:
        """Return (loss, accuracy) of float32 weights (size,) on the validation data."""
        return _loss_and_accuracy(self._ask("judge", weights))

    def test(self, weights: np.ndarray) -> tuple[float, float]:
        """Return (loss, accuracy) of float32 weights (size,) on the test set."""
        return _loss_and_accuracy(self._ask("test", weights))

    def average(self, coefficients: np.ndarray, largest: np.ndarray) -> np.ndarray:
        """Return the exact sum of the cohort's models times their coefficients: float32 (size,).

        coefficients: float64 (cohort,) in [0, 1]. largest: float64 (cohort,), each model's largest absolute
        weight.
        """
        check_sum(coefficients, largest)
        return ExactSum(self._ask("average", coefficients)).value().float().numpy()

    def cosines(self, weights: np.ndarray) -> np.ndarray:
        """Return the cosine of each client's parameter update with that of `weights`: float64 (cohort,).

        0 for clients without an update. weights: float32 (size,).
        """
        return np.nan_to_num(self._ask("cosines", weights).view(np.float64))


def _evaluation(
    comm: MPI.Comm,
    config: Config,
    about: Description,
    data: dict[str, np.ndarray],
    model: FlatModel,
    plan: np.ndarray,
    server_images: ServerImages | None,
    source: str,
) -> Question:
    """Return the `Question` that evaluates a model on a source of data: test, or one of config.validation.

    The other parameters are those of `make_questions`.
    """
    classes, size = len(about.classes), config.evaluation.batch_size

    def answer(weights: np.ndarray) -> np.ndarray:
        model.load(torch.from_numpy(weights))
        totals = np.zeros(classes + 2, dtype=np.int64)
        for images, labels in share():
            totals[:-1] += evaluate(
                model, chunks(images, labels, size, about, model.weights.device), classes, MAX_CHUNKS
            )
            totals[-1] += len(labels)
        return totals

    def share() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield this rank's part of the data, in pieces (uint8 images, int64 labels)."""
        if source == "clients":
            for client, rank in zip(plan["client"].tolist(), plan["rank"].tolist()):
                if rank == comm.rank:
                    yield client_data(data, client, config)
        elif source == "generated":
            if server_images:
                images, labels = server_images.training_images()
                chosen = sample(len(labels))
                yield images[chosen], labels[chosen]
        else:
            images, labels = (
                data[f"{'test' if source == 'test' else 'train'}_{what}"] for what in ("images", "labels")
            )
            chosen = np.arange(len(labels))
            if source == "pool":
                pool = public.public_pool(labels, config.data.public_pool, classes)
                chosen = pool[sample(len(pool))]
            for start in range(comm.rank * size, len(chosen), comm.size * size):
                part = chosen[start : start + size]
                yield images[part], labels[part]

    def sample(count: int) -> np.ndarray:
        """Draw at most validation.samples integers below `count`, in ascending order."""
        return np.sort(
            streams.generator(config.seed, "validation").permutation(count)[: config.validation.samples]
        )

    return Question(np.zeros(len(model.weights), dtype=np.float32), answer)


def _loss_and_accuracy(totals: np.ndarray) -> tuple[float, float]:
    """Return (loss, accuracy) of a model from the answer to `_evaluation`."""
    if not totals[-1]:
        raise FloatingPointError(
            "validation.source=generated: no image passed the filter, so no model can be evaluated"
        )
    accuracy, loss, _ = summarise(totals[:-1], totals[-1:])
    return loss, accuracy


def _average(kept: dict[int, torch.Tensor], size: int, cohort: int) -> Question:
    """Return the `Question` for the exact sum of the cohort's models times coefficients, float64 (cohort,).

    kept: {position in the cohort: float32 (size,)}, this rank's models.
    """
    total = ExactSum(np.zeros(size, dtype=np.int64))

    def answer(coefficients: np.ndarray) -> np.ndarray:
        total.units[:] = 0
        for place, weights in kept.items():
            total.add(coefficients[place], weights)
        return total.units

    return Question(np.zeros(cohort), answer)


def _cosines(kept: dict[int, torch.Tensor], omega: torch.Tensor, parameters: int, cohort: int) -> Question:
    """Return the `Question` for the cosines of the clients' parameter updates with that of given weights.

    The question sends float32 (size,); its answer has the bits of float64 (cohort,). omega: float32 (size,),
    the weights before the round.
    """

    def answer(weights: np.ndarray) -> np.ndarray:
        row = np.zeros(cohort)
        for place, trained in kept.items():
            row[place] = cosine(trained, torch.from_numpy(weights), omega.cpu(), parameters)
        return row.view(np.int64)

    return Question(np.zeros(len(omega), dtype=np.float32), answer)
