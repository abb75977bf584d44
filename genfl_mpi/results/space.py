"""Room on the disk, looked at before it is needed: HDF5 cannot close a file that a full disk has cut off."""

import os

from genfl_mpi.errors import UserError

RESERVE = 16e6  # bytes: a new chunk of every column and a round's rows take less


def ensure(folder, size):
    """Raise UserError if the disk of `folder` has no room for `size` more bytes and the reserve."""
    disk = os.statvfs(folder)
    free, needed = disk.f_bavail * disk.f_frsize, size + RESERVE
    if free < needed:
        raise UserError(f"{folder}: the disk is full: {free / 1e6:.0f} MB are free, and {needed / 1e6:.0f} MB are needed to go on; "
                        "make room and start again: finished rounds are kept")
