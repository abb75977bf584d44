"""Disks that are full, and files that must not be lost with the power."""

import errno
import os
from contextlib import suppress

from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

RESERVE = 16e6  # bytes: a new chunk of every column and a round's rows take less


def ensure(folder, size):
    """Raise UserError if the disk of `folder` has no room for `size` more bytes and the reserve.

    Looked at before it is needed: HDF5 cannot close a file that a full disk has cut off.
    """
    disk = os.statvfs(folder)
    free, needed = disk.f_bavail * disk.f_frsize, size + RESERVE
    if free < needed:
        raise UserError(
            f"{folder}: the disk is full: {free / 1e6:.0f} MB are free, and {needed / 1e6:.0f} MB are needed to go on; "
            "make room and start again: finished rounds are kept"
        )


def check(folder):
    """Raise UserError if the folder `output` can be neither made nor written to, and OSError if no folder can have its name."""
    with suppress(FileNotFoundError):
        os.stat(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(
            f"output: {folder} cannot be written: {there} is not a folder that you may write to; "
            "set another `output`"
        )


def flush(path):
    """Bring a file, or the names in a folder, from the system's memory to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_name(path):
    """Bring the name of a file, and those of the folders it is in, to the disk. Raises OSError for the file's own."""
    flush(path.parent)
    for folder in path.absolute().parents[1:]:  # one of them may be new
        with suppress(OSError):  # it is not ours, then
            flush(folder)


def failed(path, error):
    """The UserError for a file that could not be written, from an exception of the system, of HDF5 or of safetensors, of which
    the last two hide the system's number in a long text.

    It is unclean: HDF5 may crash when it closes the results file of the run on the same disk.
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
    error = UserError(
        f"{path}: cannot be written: {reason}; finished rounds are kept, start again when it can"
    )
    error.unclean = True
    return error
