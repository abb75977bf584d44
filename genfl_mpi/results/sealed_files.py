"""Sealed files: named arrays with an identity and a checksum, for checkpoints.

A file (safetensors) is written under another name, flushed and renamed, so a kill or a power cut leaves
either the old file or the new one. Its metadata hold its identity, a dict of text, and the SHA-256 of
identity and arrays. Reading executes no code.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from genfl_mpi.results import disk


class Damaged(Exception):
    """Raised for a file whose content does not match its checksum."""


def new_run_id() -> str:
    """Return a new random id for a run. It distinguishes the run's files from those of other runs."""
    return secrets.token_hex(6)


def write(path: Path, identity: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name atomically. Creates the folder if it is missing. Raises UserError.

    The file's name is on disk only after `disk.flush(path.parent)`, which the caller does once for many
    files.
    """
    unfinished = path.with_name(f".{path.name}.new")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.flush(path.parent.parent)
        disk.check_space(path.parent, sum(array.nbytes for array in arrays.values()))
        save_file(dict(arrays), unfinished, metadata={**identity, "sha256": _checksum(identity, arrays)})
        disk.flush(unfinished)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise disk.write_error(path, error) from None


def read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return (identity, arrays) of a file. Raises FileNotFoundError or Damaged."""
    try:
        with safe_open(path, "np") as file:
            names, identity = file.keys(), file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in names}
        is_intact = identity.pop("sha256", None) == _checksum(identity, arrays)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, MemoryError):
        is_intact = False
    if not is_intact:
        raise Damaged(path)
    return identity, arrays


def _checksum(identity: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the identity and of every array with its name, type and shape."""
    total = hashlib.sha256()
    for name in sorted(identity):
        total.update(f"{name}={identity[name]}\n".encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"\n{name} {array.dtype} {array.shape} ".encode())
        total.update(array.data)
    return total.hexdigest()
