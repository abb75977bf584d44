"""Files of named arrays that carry an identity and a checksum: checkpoints, and the clients' state files.

A file (safetensors) is written under another name, brought to the disk and renamed: a kill or a power cut
leaves the old file or the new one. Its metadata hold its identity, text by name, and the SHA-256 of that and
of every array. Reading executes nothing.
"""

import hashlib
import os
import secrets
from contextlib import suppress

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genfl_mpi.results import disk


class Damaged(Exception):
    """A file that is not as it was written."""


def new_run():
    """A new id for a run: its files are told from those of other runs by it."""
    return secrets.token_hex(6)


def write(path, identity, arrays):
    """Write a dict of arrays in one step; create the folder if it is missing.

    identity: a dict of text. The file's name is on the disk only after `space.flush(path.parent)`, which the
    caller does once for many files. Raises UserError.
    """
    unfinished = path.with_name(f".{path.name}.new")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.flush(path.parent.parent)
        disk.ensure(path.parent, sum(array.nbytes for array in arrays.values()))
        save_file(arrays, unfinished, metadata={**identity, "sha256": _checksum(identity, arrays)})
        disk.flush(unfinished)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise disk.failed(path, error) from None


def read(path):
    """(identity, arrays) of a file. Raises FileNotFoundError, or Damaged."""
    try:
        with safe_open(path, "np") as file:
            names, identity = file.keys(), file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in names}
        whole = identity.pop("sha256", None) == _checksum(identity, arrays)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, MemoryError):
        whole = False
    if not whole:
        raise Damaged(path)
    return identity, arrays


def _checksum(identity, arrays):
    """SHA-256 of the identity and of every array with its name, type and shape."""
    total = hashlib.sha256()
    for name in sorted(identity):
        total.update(f"{name}={identity[name]}\n".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"\n{name} {array.dtype} {array.shape} ".encode())
        total.update(array)
    return total.hexdigest()
