"""The lock of a run: at most one start computes a run at a time.

A start locks the file NAME.lock beside the results file. The system drops the lock when the process ends,
however it ends, so the file that a killed job leaves blocks no later start. The file has no other purpose,
and is not in a folder that a user may remove. On a file system without locks, every start gets the lock and
no run counts as running.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from genfl_mpi.util.errors import UserError

GRACE = 5  # seconds that the previous start may take to end: a launcher can return before its ranks end
PAUSE = 0.01  # seconds between attempts to take the lock
MAX_OWNER_BYTES = 200  # read from the owner's description of itself


def path_for(results: Path) -> Path:
    """Return the lock file of a results file."""
    return results.with_suffix(".lock")


class Lock:
    """Hold the lock of a run until `release` or the end of the process.

    results: the run's results file; its folder is created. Raises UserError if another start holds the lock,
    or if the file cannot be written.
    """

    def __init__(self, results: Path) -> None:
        self.path = path_for(results)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor: int | None = self._locked_file(results)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}; set `output` to a writable folder"
            ) from None
        with suppress(OSError):  # only needed for the message of a second start
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def _locked_file(self, results: Path) -> int:
        """Open and lock the file, and return its descriptor."""
        deadline = time.monotonic() + GRACE
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._works = _take(descriptor, deadline)
            if self._works is False:
                os.close(descriptor)
                _refuse(results)
            if _is_current(descriptor, self.path):
                return descriptor
            os.close(descriptor)  # the owner removed the file after it was opened here

    def is_lost(self) -> bool:
        """Return whether the lock file was removed, so that another start can lock the run as well."""
        if not self._works or self._descriptor is None:
            return False
        return not _is_current(self._descriptor, self.path)

    def check(self) -> None:
        """Raise UserError if the lock is lost."""
        if self.is_lost():
            raise UserError(
                f"{self.path}: the lock file was removed while this job computed the run, so another job may "
                "compute it now and this one ends; finished rounds are kept; start again, and do not remove "
                "the file"
            )

    def release(self) -> None:
        """Remove the lock file and release the lock. Calling it again has no effect."""
        if self._descriptor is None:
            return
        if _is_current(self._descriptor, self.path):  # otherwise it belongs to another start
            with suppress(OSError):
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None


def is_held(results: Path) -> bool:
    """Return whether a start that holds the lock of a run is alive. Needs no write permission."""
    try:
        descriptor = os.open(path_for(results), os.O_RDONLY)
    except OSError:
        return False
    try:
        return _flock(descriptor, fcntl.LOCK_SH) is False
    finally:
        os.close(descriptor)


def check_free(results: Path) -> None:
    """Raise UserError if another start holds the lock of a run for longer than GRACE."""
    deadline = time.monotonic() + GRACE
    while is_held(results):
        if time.monotonic() > deadline:
            _refuse(results)
        time.sleep(PAUSE)


def _refuse(results: Path) -> NoReturn:
    """Raise the UserError for a run that another start computes."""
    owner = b""
    with suppress(OSError), open(path_for(results), "rb") as file:
        owner = file.read(MAX_OWNER_BYTES)
    process = owner.decode(errors="replace").strip() or "an unknown process"
    raise UserError(
        f"{results}: this run is being computed by another job (rank 0: {process}); "
        "wait until it ends, or set another `output`"
    )


def _take(descriptor: int, deadline: float) -> bool | None:
    """Take the lock, waiting until the deadline. Readers hold it for microseconds while they check it.

    Returns whether this process owns the lock; None on a file system without locks.
    """
    while (taken := _flock(descriptor, fcntl.LOCK_EX)) is False and time.monotonic() < deadline:
        time.sleep(PAUSE)
    return taken


def _flock(descriptor: int, mode: int) -> bool | None:
    """Return whether the lock was taken; None on a file system without locks."""
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _is_current(descriptor: int, path: Path) -> bool:
    """Return whether `path` still names the open file.

    The path is opened, because NFS may answer `stat` from a cache that is a minute old.
    """
    try:
        now = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:  # unknown; a file server that does not answer is no reason to end a run
        return True
    try:
        return os.path.sameopenfile(descriptor, now)
    finally:
        os.close(now)
