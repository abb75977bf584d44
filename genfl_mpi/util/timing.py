"""Where the time of a round goes."""

import time
from contextlib import contextmanager


class Clock:
    """Seconds since the round began on this rank, and of each named phase. note: a function, told of each phase that begins.

    A round begins when the last collective of the round before ends (the first: the first broadcast), which is the same
    moment on all ranks up to that collective's own skew; so times of different ranks and hosts can be laid side by side.
    """

    def __init__(self, note):
        self.note = note
        self.origin = time.perf_counter()
        self.seconds = {}
        self.starts = {}

    def now(self):
        return time.perf_counter() - self.origin

    @contextmanager
    def __call__(self, phase):
        self.note(phase)
        start = self.starts[phase] = self.now()
        try:
            yield
        finally:
            self.seconds[phase] = self.now() - start
