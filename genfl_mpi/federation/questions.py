"""Questions that rank 0 puts to all ranks between training and the next broadcast: try a model, average some of the cohort's.

Only runs whose policies, algorithm or laboratory ask have any, and only then more travels than two messages a round: what a
question sends to every rank, and the integers that the answers are summed in. None of it depends on the number of clients.
"""

from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from genfl_mpi.mpi import collectives

END = -1  # no more questions


class Question(NamedTuple):
    """sent: the array that goes with it, from rank 0 to every rank. answer: (sent) -> int64 array, of which rank 0 gets the sum over
    ranks."""

    sent: np.ndarray
    answer: Callable


class Questions:
    """comm: the ranks; known: {name: Question}, alike on every rank. Without any, nothing travels."""

    def __init__(self, comm, known):
        self.comm, self.known, self.number = comm, list(known.values()), np.zeros(1, dtype=np.int64)
        self.numbers = {name: number for number, name in enumerate(known)}

    @contextmanager
    def session(self):
        """Answer questions until rank 0 leaves this context. Collective. On rank 0 it gives the function `ask`; on the others None,
        once all questions are answered."""
        if not self.known:
            yield None
        elif self.comm.rank:
            while self._next() != END:
                self._answer(self.known[int(self.number[0])])
            yield None
        else:
            yield self.ask
            self._next(END)

    def ask(self, name, value):
        """The sum over ranks of the answers to a question, int64. value: what is sent with it. On rank 0, in a `session`."""
        question = self.known[self._next(self.numbers[name])]
        question.sent[...] = value
        return self._answer(question)

    def _next(self, number=None):
        if number is not None:
            self.number[0] = number
        collectives.broadcast(self.comm, self.number)
        return int(self.number[0])

    def _answer(self, question):
        collectives.broadcast(self.comm, question.sent)
        answer = question.answer(question.sent)
        collectives.arrive(self.comm)
        collectives.reduce_sum(self.comm, answer)
        return answer
