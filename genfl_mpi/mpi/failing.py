"""Failing together: what goes wrong on one rank ends all of them, and says where it was."""

import os
import sys
import time
import traceback
from contextlib import contextmanager

from genfl_mpi.mpi.collectives import MPI
from genfl_mpi.util.errors import UserError


@contextmanager
def named(what):
    """Add `what` (a round and a client, say) to an exception that passes through."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def exit_status(comm, function):
    """Run a command on every rank and return its exit status: 2 after a UserError, 130 after Ctrl-C, else what `function`
    returns.

    A UserError is raised on all ranks together where that can be arranged: rank 0 prints it and all leave. One that a
    single rank meets, and any other exception, ends the whole job: weights that diverged and memory that does not suffice in one line, and
    what is a bug with its traceback.
    """
    try:
        return function()
    except UserError as error:
        if comm.rank == 0 or not error.on_all_ranks:
            _complain(str(error))
        if comm.size > 1 and not error.on_all_ranks:
            _abort(comm, 2)
        if error.unclean:
            MPI.Finalize()
            os._exit(2)
        return 2
    except (
        BaseException
    ) as error:  # also of an interrupt or an exit on one rank, for which the others would wait
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        if status == 1 and not isinstance(error, (FloatingPointError, MemoryError)):
            traceback.print_exc()
        where = ", ".join(
            [f"rank {comm.rank} on {os.uname().nodename}", *reversed(getattr(error, "__notes__", []))]
        )
        _complain(f"{where}: {type(error).__name__}: {error}")
        if comm.size > 1:
            _abort(comm, status)
        return status


def _abort(comm, status):
    """End the job. A launcher that is told to may drop what it has not passed on yet: so it gets the time to."""
    time.sleep(0.3)
    comm.Abort(status)


def _complain(text):
    """Say it on one line, whatever was in the input that it quotes."""
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    print(f"genfl_mpi: {line}", file=sys.stderr, flush=True)
