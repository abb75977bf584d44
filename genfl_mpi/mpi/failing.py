"""Failing together: an error on one rank ends the job and reports where it happened."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable

from genfl_mpi.mpi.collectives import MPI
from genfl_mpi.util.errors import UserError, user_frames


def exit_status(comm: MPI.Comm, function: Callable[[], int]) -> int:
    """Run a command on every rank and return its exit status.

    The status is 2 after a UserError, 130 after Ctrl-C, 1 after any other exception, else what `function`
    returns.

    Where possible, all ranks raise the same UserError: rank 0 prints it and all return. A UserError on a
    single rank, and any other exception, aborts the whole job. Diverged weights and lack of memory are
    reported in one line, exceptions in a user's function with the frames of the user's files, others with
    their traceback.
    """
    try:
        return function()
    except UserError as error:
        if comm.rank == 0 or not error.on_all_ranks:
            # At the start of a run the message itself names the place.
            in_round = f"{place}: " if (place := _place(error)).startswith("round ") else ""
            _print_error(f"{in_round}{error}")
        if comm.size > 1 and not error.on_all_ranks:
            _abort(comm, 2)
        if error.unclean:
            alone = comm.size == 1
            MPI.Finalize()
            if not alone:  # MPICH's launcher kills ranks that are still there when one ends like this
                time.sleep(0.3)
            os._exit(2)
        return 2
    except BaseException as error:
        # Also for an interrupt or an exit on one rank: the others would wait for it.
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        if status == 1:
            if frames := user_frames(error):
                print("".join(traceback.format_list(frames)), end="", file=sys.stderr)
            elif not isinstance(error, (FloatingPointError, MemoryError)):
                traceback.print_exc()
        where = ", ".join(filter(None, [f"rank {comm.rank} on {os.uname().nodename}", _place(error)]))
        _print_error(f"{where}: {type(error).__name__}: {error}")
        if comm.size > 1:
            _abort(comm, status)
        return status


def _place(error: BaseException) -> str:
    """Return the notes of an exception, as of `annotate_errors`: "round 3, client 7", or "".

    Without one that its message begins with.
    """
    notes = reversed(getattr(error, "__notes__", []))
    return ", ".join(note for note in notes if not str(error).startswith(note))


def _abort(comm: MPI.Comm, status: int) -> None:
    """Abort the job after 0.3 seconds: a launcher may drop output that it has not forwarded by then."""
    time.sleep(0.3)
    comm.Abort(status)


def _print_error(text: str) -> None:
    """Print an error as one line; escape unprintable characters in what it quotes."""
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    print(f"genfl_mpi: {line}", file=sys.stderr, flush=True)
