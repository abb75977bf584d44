"""Measure the phases of a round."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Measure the seconds since the round began on this rank, and the seconds of each named phase.

    note: called with the name of each phase when it begins.

    A round begins when the last collective of the previous round ends (the first: after the first broadcast).
    This is the same moment on all ranks up to the skew of that collective, so that times of different ranks
    and hosts can be compared.
    """

    def __init__(self, note: Callable[[str], object]) -> None:
        self.note = note
        self.origin = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.starts: dict[str, float] = {}

    def now(self) -> float:
        """Return the seconds since the round began."""
        return time.perf_counter() - self.origin

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Measure a phase."""
        self.note(phase)
        start = self.starts[phase] = self.now()
        try:
            yield
        finally:
            self.seconds[phase] = self.now() - start
