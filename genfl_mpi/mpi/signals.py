"""Leaving together: a signal to any rank, or to the launcher, stops all ranks at the next safe point.

Batch systems send SIGTERM or SIGUSR1 before the time limit; Ctrl-C sends SIGINT. MPICH's launcher forwards
all three to every rank. Where a single rank receives a signal, it notifies the others by a message of 8
bytes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Self

import numpy as np

from genfl_mpi.mpi.collectives import MPI

CONTINUE = 75  # exit status: not finished, start again (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # exit status: the same, after SIGINT, as shells report it
STATUS = {signal.SIGTERM: CONTINUE, signal.SIGUSR1: CONTINUE, signal.SIGINT: INTERRUPTED}
# Seconds in which a second signal counts as the same one: batch system and launcher may both deliver it.
SAME_SIGNAL_SECONDS = 1.0


class Signals:
    """Within a `with` block, note SIGTERM, SIGINT and SIGUSR1 instead of ending the process.

    A second signal ends it at once.

    comm: communicator of the ranks that leave together. doing: returns what this rank is doing, for the
    message; the owner sets it. announce: prints the message; may be replaced.
    """

    def __init__(self, comm: MPI.Comm):
        self.comm = comm
        self.doing: Callable[[], str] = lambda: "starting"
        self.announce: Callable[[str], object] = _write
        self.caught = self.status = 0
        self.since: float | None = None
        self.requests: list[MPI.Request] | None = None

    def __enter__(self) -> Self:
        self.comm = self.comm.Dup()
        self.before = {number: signal.signal(number, self._catch) for number in STATUS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if kind is None:  # after an exception the job aborts, and other ranks may never reach a collective
            self._settle()
            self.comm.Free()

    def exit_status(self) -> int:
        """Return the exit status with which to leave, once any rank received a signal; else 0.

        Not collective, and cheap.
        """
        if self.caught and self.requests is None:
            # The buffer must exist until the messages have arrived.
            self.message = [np.array([self.caught], dtype=np.int64), MPI.INT64_T]
            others = [rank for rank in range(self.comm.size) if rank != self.comm.rank]
            self.requests = [self.comm.Issend(self.message, rank) for rank in others]
        self._receive()
        return self.status

    def _catch(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        name = signal.Signals(number)
        if self.since is None:
            self.since, self.caught = now, STATUS[name]
            self.status = max(self.status, self.caught)
            self._announce(f"rank {self.comm.rank}: {name.name} while {self.doing()}")
        elif now - self.since > SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _announce(self, event: str) -> None:
        self.announce(f"genfl_mpi: {event}: leaving when that is done; the same command continues")

    def _receive(self) -> None:
        """Receive the notifications of other ranks that have arrived."""
        state = MPI.Status()
        while self.comm.Iprobe(status=state):
            message = np.empty(1, dtype=np.int64)
            self.comm.Recv([message, MPI.INT64_T], state.source)
            if not self.status and self.comm.rank == 0:
                self._announce(f"rank {state.source} received a signal while rank 0 is {self.doing()}")
            self.status = max(self.status, int(message[0]))

    def _settle(self) -> None:
        """Receive all notifications still in flight: MPI allows none at finalization. Collective."""
        self.exit_status()
        # A rank enters the barrier when its own messages have arrived. When all ranks have entered, no
        # message is in flight (Hoefler, Siebert and Lumsdaine 2010).
        for request in self.requests or []:
            while not request.Test():
                self._receive()
        barrier = self.comm.Ibarrier()
        while not barrier.Test():
            self._receive()
            time.sleep(1e-3)
        self._receive()


def _write(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # print is not reentrant, and a signal may interrupt one
