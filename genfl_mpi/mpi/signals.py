"""Leaving together: a signal to any rank, or to the launcher, makes all ranks stop at the next good moment.

SIGTERM and SIGUSR1 are what batch systems send before the time is over, SIGINT is Ctrl-C. MPICH's launcher passes all three on
to every rank; where only one rank gets a signal, it tells the others by a message of a few bytes.
"""

import os
import signal
import time

import numpy as np

from genfl_mpi.mpi.collectives import MPI

CONTINUE = 75  # exit status: not finished, start again (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # exit status: the same, after SIGINT, as shells have it
STATUS = {signal.SIGTERM: CONTINUE, signal.SIGUSR1: CONTINUE, signal.SIGINT: INTERRUPTED}
SAME = 1.0  # seconds: a launcher passes on a signal that the batch system may have sent to the rank already


class Signals:
    """Within a `with` block, SIGTERM, SIGINT and SIGUSR1 are noted instead of ending the process; a second one ends it at once.

    comm: the communicator of those who leave together. doing: what this rank is doing, for the line that is said: a
    function that the owner sets. tell: says such a line, another one.
    """

    def __init__(self, comm):
        self.comm, self.doing, self.tell = comm, lambda: "starting", _write
        self.caught = self.status = 0
        self.since, self.told = None, None

    def __enter__(self):
        self.comm = self.comm.Dup()
        self.before = {number: signal.signal(number, self._catch) for number in STATUS}
        return self

    def __exit__(self, kind, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if kind is None:  # else the job ends without ceremony
            self._settle()
            self.comm.Free()

    def asked(self):
        """0; or, once this rank or another one was asked to leave, the exit status for it. Not collective, and cheap."""
        if self.caught and self.told is None:
            self.message = [
                np.array([self.caught], dtype=np.int64),
                MPI.INT64_T,
            ]  # must live as long as it travels
            others = [rank for rank in range(self.comm.size) if rank != self.comm.rank]
            self.told = [self.comm.Issend(self.message, rank) for rank in others]
        self._listen()
        return self.status

    def _catch(self, number, frame):
        now = time.monotonic()
        if self.since is None:
            self.since, self.caught = now, STATUS[number]
            self.status = max(self.status, self.caught)
            self._say(f"rank {self.comm.rank}: {signal.Signals(number).name} while {self.doing()}")
        elif now - self.since > SAME:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _say(self, what):
        self.tell(f"genfl_mpi: {what}: leaving when that is done; the same command continues")

    def _listen(self):
        state = MPI.Status()
        while self.comm.Iprobe(status=state):
            message = np.empty(1, dtype=np.int64)
            self.comm.Recv([message, MPI.INT64_T], state.source)
            if not self.status and self.comm.rank == 0:
                self._say(f"rank {state.source} was asked to leave, and rank 0 is {self.doing()}")
            self.status = max(self.status, int(message[0]))

    def _settle(self):
        """Receive every message that is still on its way: MPI wants none left at its end. Collective."""
        self.asked()
        # A rank enters the barrier when its own messages have arrived; when all have, there are none
        # (Hoefler, Siebert and Lumsdaine 2010).
        for request in self.told or []:
            while not request.Test():
                self._listen()
        barrier = self.comm.Ibarrier()
        while not barrier.Test():
            self._listen()
            time.sleep(1e-3)
        self._listen()


def _write(line):
    os.write(2, f"{line}\n".encode())  # print may be in use
