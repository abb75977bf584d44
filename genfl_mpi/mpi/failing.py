"""Failing together: what goes wrong on one rank ends all of them, and says where it was."""

import os
import sys
import traceback
from contextlib import contextmanager

from genfl_mpi.errors import UserError


@contextmanager
def named(what):
    """Add `what` (a round and a client, say) to an exception that passes through."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {what}")
        raise


def exit_status(comm, function):
    """Run a command on every rank and return its exit status.

    A UserError is the same on all ranks by design: rank 0 prints it and all return 2. Any other exception is a bug:
    its rank prints the traceback and ends the whole job.
    """
    try:
        return function()
    except UserError as error:
        if comm.rank == 0:
            print(f"genfl_mpi: {error}", file=sys.stderr, flush=True)
        return 2
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        traceback.print_exc()
        notes = ", ".join(getattr(error, "__notes__", []))
        print(f"genfl_mpi: rank {comm.rank} on {os.uname().nodename} failed {notes}: {error!r}", file=sys.stderr, flush=True)
        if comm.size > 1:
            comm.Abort(1)
        return 1
