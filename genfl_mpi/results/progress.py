"""What each rank is doing, in a folder beside the results: a rank that is killed cannot say it.

A rank's file is one line of JSON, overwritten in place whenever the rank begins something else; it stays in the system's memory,
so that it costs microseconds and outlives the rank. Rank 0 holds a lock on its own file as long as it lives: nobody else can
bring the same run on meanwhile.
"""

import fcntl
import json
import os
import shutil
import time
from contextlib import suppress

from genfl_mpi.errors import UserError

LENGTH = 256  # bytes of a file
PHASES = {"start": "starting", "begin": "beginning", "generate": "generating images",
          "augment": "training the augmented model", "train": "training", "wait": "waiting for the others",
          "reduce": "summing weights", "broadcast": "sending weights", "evaluate": "testing",
          "results": "writing the results file", "checkpoint": "writing the checkpoint", "finish": "finishing"}
MOST = 8  # ranks that are told of


def path_for(results):
    return results.with_suffix(".progress")


class Progress:
    """Of one rank. results: the run's results file; rank, ranks: of the communicator. Raises UserError on rank 0 if the run is
    already being computed, or nothing can be written; another rank that cannot write goes on without."""

    def __init__(self, results, rank, ranks):
        self.about = {"rank": rank, "ranks": ranks, "host": os.uname().nodename, "pid": os.getpid(), "round": 0}
        self.descriptor, folder = None, path_for(results)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(folder / str(rank), os.O_RDWR | os.O_CREAT, 0o666)
            if rank == 0 and not _locked(self.descriptor):
                refuse_second(results)
        except OSError as error:
            if rank == 0:
                raise UserError(f"{folder}: cannot be written: {error.strerror}; set `output` to a folder that can") from None
        self("start")

    def __call__(self, phase, client=None, round=None):
        """Note that the rank begins a phase of the round noted last, or of `round`."""
        self.about |= {"phase": phase, "client": client, "time": _now()} | ({} if round is None else {"round": round})
        if self.descriptor is not None:
            with suppress(OSError):  # it is a help, and no reason to end a run
                os.pwrite(self.descriptor, f"{json.dumps(self.about):{LENGTH - 1}}\n".encode(), 0)

    def raised(self, error):
        """Note that what the rank was doing has failed."""
        self.about["raised"] = type(error).__name__
        self(self.about["phase"], self.about["client"])

    def doing(self):
        """What the rank is doing, in words."""
        return _doing(self.about)

    def close(self):
        """Let go of the file: the rank has nothing more to do for this run."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def clear(results):
    """Remove what an earlier start left, but never the file by which a running one is locked."""
    shutil.rmtree(path_for(results), ignore_errors=True)


def read(results):
    """What is known of each rank of the start that left its progress here, in their order: dicts."""
    found = []
    with suppress(OSError):  # the next start removes them, at any moment
        for path in list(path_for(results).glob("[0-9]*")):
            with suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
    return sorted(found, key=lambda about: about["rank"])


def is_running(results):
    """Whether rank 0 of some start is alive and at work on the run."""
    try:
        descriptor = os.open(path_for(results) / "0", os.O_RDWR)
    except OSError:
        return False
    try:
        return not _locked(descriptor)
    finally:
        os.close(descriptor)


def refuse_second(results):
    """Raise UserError because the run is being computed by somebody else."""
    who = next(iter(read(results)), {"host": "another host", "pid": "?"})
    raise UserError(f"{results}: this run is being computed by another job (rank 0: process {who['pid']} on {who['host']}); "
                    "wait for its end, or set another `output`")


def lines(results):
    """Who is, or was, doing what: a line a rank."""
    known = read(results)
    for about in known[:MOST]:
        where = f"rank {about['rank']} of {about['ranks']} on {about['host']} (process {about['pid']})"
        yield f"{where}: {_doing(about)}, since {about['time']}"
    if len(known) > MOST:
        yield f"and {len(known) - MOST} more ranks"


def _now():
    now = time.time()
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d} UTC"


def _doing(about):
    what = PHASES.get(about["phase"], about["phase"]) + (f" client {about['client']}" if about["client"] is not None else "")
    where = f" in round {about['round']}" if about["round"] else ""
    return what + where + (f", which raised {about['raised']}" if "raised" in about else "")


def _locked(descriptor):
    """Lock a file for this process until it ends; whether that was possible, or nobody can lock on this file system."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
