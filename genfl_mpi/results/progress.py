"""What each rank is doing, in a folder beside the results: a rank that is killed cannot say it.

A rank's file is one line of JSON, overwritten in place whenever the rank begins something else; it stays in the system's memory,
so that it costs microseconds and outlives the rank. Rank 0 holds a lock on its own file as long as it lives: nobody else can
bring the same run on meanwhile. It also notes each finished round there, for readers of file systems on which HDF5's SWMR fails.
"""

import fcntl
import json
import os
import shutil
import time
from contextlib import suppress
from datetime import datetime, timezone

from genfl_mpi.errors import UserError

LENGTH = 256  # bytes of a file
PHASES = {"start": "starting", "begin": "beginning", "generate": "generating images",
          "augment": "training the augmented model", "send": "sending images", "train": "training",
          "wait": "waiting for the others",
          "reduce": "summing weights", "broadcast": "sending weights", "evaluate": "testing", "probe": "probing",
          "results": "writing the results file", "checkpoint": "writing the checkpoint", "finish": "finishing"}
MOST = 8  # ranks that are told of
MOST_SAID = 200  # characters of what an error says
TRIES = 3  # at a lock, which somebody who only looks may hold for a moment
ROUNDS = "rounds"  # the file of finished rounds: a line of JSON about the run, then one for each round


def path_for(results):
    return results.with_suffix(".progress")


class Progress:
    """Of one rank. results: the run's results file; rank, ranks: of the communicator. Raises UserError on rank 0 if the run is
    already being computed, or nothing can be written; another rank that cannot write goes on without."""

    def __init__(self, results, rank, ranks):
        self.about = {"rank": rank, "ranks": ranks, "host": os.uname().nodename, "pid": os.getpid(), "round": 0}
        self.descriptor, self.folder = None, path_for(results)
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(folder / str(rank), os.O_RDWR | os.O_CREAT, 0o666)
            if rank == 0 and not (_locked(self.descriptor) and _is_there(self.descriptor, folder / "0")):
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

    def finished(self, *rows):
        """Note finished rounds, or first of all what `status.of_run` needs to know of the run: a list each."""
        with suppress(OSError), open(self.folder / ROUNDS, "a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)

    def raised(self, error):
        """Note that what the rank was doing has failed. It is the rank's last word, and may be longer than others."""
        self.about["raised"] = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split())[:MOST_SAID])))
        self(self.about["phase"], self.about["client"])

    def doing(self):
        """What the rank is doing, in words."""
        return doing(self.about)

    def close(self):
        """Let go of the file: the rank has nothing more to do for this run."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def clear(results):
    """Remove what an earlier start left. Raises UserError if another one has begun meanwhile."""
    folder = path_for(results)
    try:
        descriptor = os.open(folder / "0", os.O_RDWR)
    except OSError:
        descriptor = None
    try:
        if descriptor is not None and not _locked(descriptor):
            refuse_second(results)
        shutil.rmtree(folder, ignore_errors=True)  # with the lock, which nobody else can have then
    finally:
        if descriptor is not None:
            os.close(descriptor)


def read(results):
    """What is known of each rank of the start that left its progress here, in their order: dicts."""
    found = []
    with suppress(OSError):  # the next start removes them, at any moment
        for path in list(path_for(results).glob("[0-9]*")):
            with suppress(OSError, ValueError):
                found.append(json.loads(path.read_text()))
    return sorted(found, key=lambda about: about["rank"])


def rounds(results):
    """What was noted of finished rounds: lists."""
    found = []
    with suppress(OSError, ValueError):  # it is not there, or its last line is half written
        for line in (path_for(results) / ROUNDS).read_text().splitlines():
            found.append(json.loads(line))
    return found


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


def state(results):
    """Of the start that left its progress here, in a word: running; failed, with an error of which a rank still told; cut off, of which
    none could; or nothing, where no start left any, or it ended well."""
    known = read(results)
    return "running" if is_running(results) else "" if not known else "failed" if any("raised" in about for about in known) else "cut off"


def refuse_second(results):
    """Raise UserError because the run is being computed by somebody else."""
    who = next(iter(read(results)), {"host": "another host", "pid": "?"})
    raise UserError(f"{results}: this run is being computed by another job (rank 0: process {who['pid']} on {who['host']}); "
                    "wait for its end, or set another `output`")


def seconds_since(about):
    """How long a rank has been doing what it does."""
    then = datetime.strptime(about["time"], "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=timezone.utc)
    return max(0.0, time.time() - then.timestamp())


def lines(results):
    """Who is, or was, doing what: a line a rank."""
    known = read(results)
    for about in known[:MOST]:
        where = f"rank {about['rank']} of {about['ranks']} on {about['host']} (process {about['pid']})"
        yield f"{where}: {doing(about)}, since {about['time']}"
    if len(known) > MOST:
        yield f"and {len(known) - MOST} more ranks"


def _now():
    now = time.time()
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d} UTC"


def doing(about):
    """What a rank is doing, in words. about: as `read` gives it."""
    what = PHASES.get(about["phase"], about["phase"]) + (f" client {about['client']}" if about["client"] is not None else "")
    where = f" in round {about['round']}" if about["round"] else ""
    return what + where + (f", which raised {about['raised']}" if "raised" in about else "")


def _is_there(descriptor, path):
    """Whether an open file still is the one of that name: another start may have removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _locked(descriptor):
    """Lock a file for this process until it ends; whether that was possible, or nobody can lock on this file system."""
    for _ in range(TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            return True
    return False
