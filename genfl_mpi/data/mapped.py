"""Decoded data sets in files that every rank maps into memory: one copy a node, in its page cache."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genfl_mpi.util.errors import UserError

ABOUT = "about.json"  # written last: a folder with it is complete


def is_made(folder: Path) -> bool:
    """Return whether a folder holds a complete data set."""
    return (folder / ABOUT).is_file()


def make(folder: Path, key: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `folder`, record `key`, and rename it.

    If another process was faster, its folder stays. Raises UserError if it cannot be written.
    """
    scratch = folder.with_name(f"{folder.name}.partial-{os.uname().nodename}-{os.getpid()}")
    try:
        scratch.mkdir(parents=True)
        try:
            write(scratch)
            (scratch / ABOUT).write_text(json.dumps(dict(key), indent=1))
            if not is_made(folder):
                scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if not is_made(folder):
            raise UserError(f"data.arrays: {folder} cannot be written: {error.strerror}") from None


def allocate(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a new uint8 array that is mapped to a file of the folder."""
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape)


def check(folder: Path, key: Mapping[str, Any]) -> None:
    """Raise UserError if the folder holds another data set than that of `key`."""
    try:
        made = json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError):
        raise UserError(f"data.arrays: {folder} is damaged; remove the folder, and run `prefetch`") from None
    if differing := [name for name in key if made.get(name) != key[name]]:
        name = differing[0]
        raise UserError(
            f"data.arrays: {folder} was made with {name}={made.get(name)}, not {key[name]}; set another "
            "folder, or remove this one"
        )


def open_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Map all arrays of a folder, read-only: {name: array}."""
    try:
        return {
            path.stem: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            for path in sorted(folder.glob("*.npy"))
        }
    except (OSError, ValueError):
        raise UserError(f"data.arrays: {folder} is damaged; remove the folder, and run `prefetch`") from None
