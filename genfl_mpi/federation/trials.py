"""The questions of policies and of the evaluation in hindsight.

They evaluate a model on data divided over the ranks, or average models of the cohort. Averages need these
models, which the ranks that trained them keep until the round's sum (4 bytes a weight and client).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.federation import teachers
from genfl_mpi.federation.questions import Question
from genfl_mpi.learning.evaluation import summarise
from genfl_mpi.learning.geometry import cosine
from genfl_mpi.learning.weights import ExactSum, check_sum

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.evaluator import Evaluator
    from genfl_mpi.federation.questions import Ask
    from genfl_mpi.federation.worker import Worker


def make_questions(
    config: Config, evaluator: Evaluator, parameters: int, plan: np.ndarray, worker: Worker
) -> dict[str, Question]:
    """Return the questions of a run by name.

    judge: if the run has validation data; test: if it evaluates in hindsight; average and cosines: if a rho
    policy needs the clients' models; logits, made: if anything may need them. parameters: how many of the
    weights are parameters; plan: of the `Broadcast` message; worker: the rank's `Worker`.
    """
    size = len(evaluator.model.weights)
    found = {}
    if config.validation.source != "none":
        found["judge"] = _evaluation(evaluator, config.validation.source)
    if config.hindsight.every is not None:
        found["test"] = _evaluation(evaluator, "test")
    if worker.delays:
        found["average"] = _average(worker.kept, size, len(plan))
        found["cosines"] = _cosines(worker.kept, worker.resident.omega, parameters, len(plan))
    if worker.keeps:
        shape = worker.algorithm.asks(config)
        found |= teachers.questions(evaluator.model, evaluator.about, worker.kept, len(plan), shape)
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


def _evaluation(evaluator: Evaluator, source: str) -> Question:
    """Return the `Question` that evaluates a model on a source of data, as of `Evaluator.count`."""
    return Question(
        np.zeros(len(evaluator.model.weights), dtype=np.float32),
        lambda weights: evaluator.count(torch.from_numpy(weights), source),
    )


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
