"""The questions of policies and of the laboratory: models tried on data that are divided over the ranks, and averages of some of
the cohort's models, which the ranks that trained them keep until the round's sum (4 bytes a weight and client)."""

from functools import partial

import numpy as np
import torch

from genfl_mpi.data import public
from genfl_mpi.data.clients import client_data
from genfl_mpi.federation.questions import Question
from genfl_mpi.learning.evaluation import chunks, evaluate, summarise
from genfl_mpi.learning.geometry import cosine
from genfl_mpi.learning.weights import ExactSum, bound
from genfl_mpi.util import streams

MAX_CHUNKS = 2**20  # in which all ranks together try a model: a bound, for the losses' sum


def questions(comm, config, about, data, model, plan, server_images, worker):
    """The questions of a run, {name: Question}: judge, where there are validation data; test, where there is a laboratory; average and
    cosines, where the worker keeps models for a rho policy.

    data: the run's arrays; model: the rank's `FlatModel`, which is overwritten; plan: of the `Broadcast` message; server_images: on
    rank 0 the `ServerImages`, elsewhere None; worker: the rank's `Worker`.
    """
    on_data = partial(_on_data, comm, config, about, data, model, plan, server_images)
    found = {}
    if config.validation.source != "none":
        found["judge"] = on_data(config.validation.source)
    if config.hindsight.every is not None:
        found["test"] = on_data("test")
    if worker.keeps:
        found["average"] = _average(worker.kept, len(model.weights), len(plan))
        found["cosines"] = _cosines(worker.kept, worker.resident.omega, model.parameters, len(plan))
    return found


class Trials:
    """The answers to these questions, on rank 0 in a session. ask: of `Questions.session`."""

    def __init__(self, ask):
        self._ask = ask

    def judge(self, weights):
        """(loss, accuracy) of float32 weights (size,) on the validation data."""
        return _measured(self._ask("judge", weights))

    def test(self, weights):
        """(loss, accuracy) of float32 weights (size,) on the test set."""
        return _measured(self._ask("test", weights))

    def average(self, coefficients, largest):
        """The exact sum of the cohort's models with float64 coefficients (cohort,) in [0, 1]: float32 (size,). largest: float64
        (cohort,), the size of each model's largest weight."""
        bound(coefficients, largest)
        return ExactSum(self._ask("average", coefficients)).value().float().numpy()

    def cosines(self, weights):
        """Cosine of each client's update of the parameters with that of float32 weights (size,): float64 (cohort,), 0 for none."""
        return np.nan_to_num(self._ask("cosines", weights).view(np.float64))


def _on_data(comm, config, about, data, model, plan, server_images, source):
    """The `Question` how a model does on a source of data: test, or one of config.validation.

    data: the run's arrays; model: the rank's `FlatModel`, which is overwritten; plan: of the `Broadcast` message; server_images: on
    rank 0 the `ServerImages`, elsewhere None.
    """
    classes, size = len(about.classes), config.evaluation.batch_size

    def answer(weights):
        model.load(torch.from_numpy(weights))
        totals = np.zeros(classes + 2, dtype=np.int64)
        for images, labels in share():
            totals[:-1] += evaluate(
                model, chunks(images, labels, size, about, model.weights.device), classes, MAX_CHUNKS
            )
            totals[-1] += len(labels)
        return totals

    def share():
        """The data on which this rank tries a model, in pieces (uint8 images, int64 labels)."""
        if source == "clients":
            for client, rank in zip(plan["client"].tolist(), plan["rank"].tolist()):
                if rank == comm.rank:
                    yield client_data(data, client, config)
        elif source == "generated":
            if server_images:
                images, labels = server_images.used()
                chosen = sample(len(labels))
                yield images[chosen], labels[chosen]
        else:
            images, labels = (
                data[f"{'test' if source == 'test' else 'train'}_{what}"] for what in ("images", "labels")
            )
            chosen = np.arange(len(labels))
            if source == "pool":
                pool = public.pool(labels, config.data.public_pool, classes)
                chosen = pool[sample(len(pool))]
            for start in range(comm.rank * size, len(chosen), comm.size * size):
                own = chosen[start : start + size]
                yield images[own], labels[own]

    def sample(count):
        """At most validation.samples numbers below `count`, in rising order."""
        return np.sort(
            streams.generator(config.seed, "validation").permutation(count)[: config.validation.samples]
        )

    return Question(np.zeros(len(model.weights), dtype=np.float32), answer)


def _measured(totals):
    """(loss, accuracy) of a model, from the answer to `_on_data`."""
    if not totals[-1]:
        raise FloatingPointError(
            "there are no data to try a model on: validation.source=generated, and no image passed"
        )
    accuracy, loss, _ = summarise(totals[:-1], totals[-1:])
    return loss, accuracy


def _average(kept, size, cohort):
    """The `Question` of the exact sum of the cohort's models with coefficients, float64 (cohort,). kept: {place in the cohort:
    float32 (size,)}, this rank's models."""
    total = ExactSum(np.zeros(size, dtype=np.int64))

    def answer(coefficients):
        total.units[:] = 0
        for place, weights in kept.items():
            total.add(coefficients[place], weights)
        return total.units

    return Question(np.zeros(cohort), answer)


def _cosines(kept, omega, parameters, cohort):
    """The `Question` of the cosine between each client's update of the parameters and that of given weights, float32 (size,). omega:
    float32 (size,), the weights before the round; the answer's bits are those of float64 (cohort,)."""

    def answer(weights):
        row = np.zeros(cohort)
        for place, trained in kept.items():
            row[place] = cosine(trained, torch.from_numpy(weights), omega.cpu(), parameters)
        return row.view(np.int64)

    return Question(np.zeros(len(omega), dtype=np.float32), answer)
