"""Questions from rank 0 to all ranks between training and the next broadcast.

A question evaluates a model, or averages clients' models. Only runs whose policies, algorithm or hindsight
need them have questions. Only then does a round send more than its two messages: the array that goes with a
question, and the integers that its answers are summed in. Neither depends on the number of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from genfl_mpi.mpi import collectives

if TYPE_CHECKING:
    from genfl_mpi.mpi.collectives import MPI

END = -1  # no more questions

Ask: TypeAlias = "Callable[[str, np.ndarray], np.ndarray]"


class Question(NamedTuple):
    """Define a question.

    sent: the array that rank 0 broadcasts with it. answer: (sent) -> int64 array, summed over ranks on rank
    0.
    """

    sent: np.ndarray
    answer: Callable[[np.ndarray], np.ndarray]


class Questions:
    """Ask and answer the questions of a run.

    comm: the ranks. known: {name: Question}, the same on every rank; if empty, nothing is sent.
    """

    def __init__(self, comm: MPI.Comm, known: dict[str, Question]) -> None:
        self.comm, self.known, self.number = comm, list(known.values()), np.zeros(1, dtype=np.int64)
        self.numbers = {name: number for number, name in enumerate(known)}

    @contextmanager
    def session(self) -> Iterator[Ask]:
        """Answer questions until rank 0 leaves this context. Collective.

        Yields the function `ask`, for rank 0 alone; elsewhere after the last question.
        """
        if not self.known:
            yield self.ask
        elif self.comm.rank:
            while self._next() != END:
                self._answer(self.known[int(self.number[0])])
            yield self.ask
        else:
            yield self.ask
            self._next(END)

    def ask(self, name: str, value: np.ndarray) -> np.ndarray:
        """Return the sum over ranks of the answers to a question, int64. Only on rank 0, in a `session`.

        value: the array to send with it.
        """
        question = self.known[self._next(self.numbers[name])]
        question.sent[...] = value
        return self._answer(question)

    def _next(self, number: int | None = None) -> int:
        """Broadcast the number of the next question from rank 0."""
        if number is not None:
            self.number[0] = number
        collectives.broadcast(self.comm, self.number)
        return int(self.number[0])

    def _answer(self, question: Question) -> np.ndarray:
        """Broadcast a question's array, and sum the answers on rank 0."""
        collectives.broadcast(self.comm, question.sent)
        answer = question.answer(question.sent)
        collectives.wait_for_all(self.comm)
        collectives.reduce_sum(self.comm, answer)
        return answer
