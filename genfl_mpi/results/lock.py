"""At most one start computes a run at any time: it locks the file NAME.lock beside the results file.

The system drops the lock when the process ends, however it ends, so the file that a killed job leaves blocks
nobody. The file has no other purpose, and lies in none of the folders that a user may remove. Where the file
system has no locks, every start gets the lock and no run counts as running.
"""

import fcntl
import os
import time
from contextlib import suppress

from genfl_mpi.util.errors import UserError

GRACE = 5  # seconds in which the start before may end: a launcher can return before its ranks are gone
PAUSE = 0.01  # seconds between attempts to take the lock
MAX_OWNER_BYTES = 200  # that are read of what the owner wrote about itself


def path_for(results):
    """Return the lock file of a results file."""
    return results.with_suffix(".lock")


class Lock:
    """Hold the lock of a run until `release` or the end of the process.

    results: the run's results file; its folder is created. Raises UserError if another start holds the lock,
    or if the file cannot be written.
    """

    def __init__(self, results):
        self.path = path_for(results)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._locked_file(results)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}; set `output` to a folder that can"
            ) from None
        with suppress(OSError):  # without it a second start cannot say who holds the lock
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def _locked_file(self, results):
        deadline = time.monotonic() + GRACE
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._works = _take(descriptor, deadline)
            if self._works is False:
                os.close(descriptor)
                _refuse(results)
            if _is_current(descriptor, self.path):
                return descriptor
            os.close(descriptor)  # its owner ended, and removed it, after it was opened here

    def is_lost(self):
        """Return whether the lock file was removed, so that another start can lock the run as well."""
        return self._works and not _is_current(self._descriptor, self.path)

    def check(self):
        """Raise UserError if the lock is lost."""
        if self.is_lost():
            raise UserError(
                f"{self.path}: the lock file was removed while this job computed the run, and "
                "another job may compute it now, so this one ends; finished rounds are kept; "
                "start again, and leave the file alone"
            )

    def release(self):
        """Remove the lock file and let others take the lock. May be called again."""
        if self._descriptor is None:
            return
        if _is_current(self._descriptor, self.path):  # else it is somebody else's
            with suppress(OSError):
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None


def is_held(results):
    """Return whether a start that holds the lock of a run is alive. Needs no permission to write."""
    try:
        descriptor = os.open(path_for(results), os.O_RDONLY)
    except OSError:
        return False
    try:
        return _flock(descriptor, fcntl.LOCK_SH) is False
    finally:
        os.close(descriptor)


def check_free(results):
    """Raise UserError if another start holds the lock of a run for longer than GRACE."""
    deadline = time.monotonic() + GRACE
    while is_held(results):
        if time.monotonic() > deadline:
            _refuse(results)
        time.sleep(PAUSE)


def _refuse(results):
    owner = b""
    with suppress(OSError), open(path_for(results), "rb") as file:
        owner = file.read(MAX_OWNER_BYTES)
    who = owner.decode(errors="replace").strip() or "an unknown process"
    raise UserError(
        f"{results}: this run is being computed by another job (rank 0: {who}); "
        "wait for its end, or set another `output`"
    )


def _take(descriptor, deadline):
    """Return whether this process owns the lock now; False if another has it until the deadline; None without
    locks. Readers hold it for microseconds while they check it."""
    while (taken := _flock(descriptor, fcntl.LOCK_EX)) is False and time.monotonic() < deadline:
        time.sleep(PAUSE)
    return taken


def _flock(descriptor, how):
    """Return whether the lock was taken; None where the file system has none."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _is_current(descriptor, path):
    """Return whether an open file still has its name.

    The name is opened, because NFS may answer `stat` from a cache that is a minute old.
    """
    try:
        now = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:  # unknown: a server that does not answer is no reason to end a run
        return True
    try:
        return os.path.sameopenfile(descriptor, now)
    finally:
        os.close(now)
