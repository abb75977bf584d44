"""Check for full disks, and flush files that must survive a power cut."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

RESERVE = 16e6  # bytes, more than a new chunk of every column and a round's rows need


def check_space(folder: Path, size: int) -> None:
    """Raise UserError if the disk of `folder` has less free space than `size` bytes and the reserve.

    Call it before every write: HDF5 cannot close a file after a failed write.
    """
    disk = os.statvfs(folder)
    free, needed = disk.f_bavail * disk.f_frsize, size + RESERVE
    if free < needed:
        raise UserError(
            f"{folder}: the disk is full: {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed; free some "
            "space and start again; finished rounds are kept"
        )


def check_writable(folder: Path) -> None:
    """Raise UserError if the folder `output` cannot be created or written to.

    Raises OSError if its name is not valid.
    """
    with suppress(FileNotFoundError):
        os.stat(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(
            f"output: {folder} cannot be written: {existing} is not a writable folder; set another `output`"
        )


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk (fsync). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_name(path: Path) -> None:
    """Flush the names of a file and of its parent folders to disk.

    Raises OSError if the file's folder cannot be flushed; errors of other folders are ignored.
    """
    flush(path.parent)
    for folder in path.absolute().parents[1:]:  # any of them may be new
        with suppress(OSError):  # no permission, so this run did not create it
            flush(folder)


def write_error(path: Path | str, error: Exception) -> UserError:
    """Return the UserError for a failed write to `path`.

    error: an exception of the system, HDF5 or safetensors; the last two hide the error number in a long text.
    The result is marked unclean: HDF5 may crash when it closes the run's results file on the same disk.
    """
    number = getattr(error, "errno", None) or next(
        (
            code
            for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
            if f"errno = {code}," in str(error) or f"os error {code})" in str(error)
        ),
        None,
    )
    reason = os.strerror(number) if number else first_line(error)
    result = UserError(
        f"{path}: cannot be written: {reason}; finished rounds are kept; fix this and start again"
    )
    result.unclean = True
    return result
