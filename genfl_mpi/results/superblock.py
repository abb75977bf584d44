"""The superblock of an HDF5 file. Its consistency flags mark the file as open for writing, even after a kill.

Version 3 (HDF5 file format specification, II.A) has 48 bytes: signature, version, sizes of offsets and
lengths, consistency flags, four addresses (base, extension, end of file, root group), and Jenkins' lookup3
checksum of these.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

SIGNATURE, SIZE = b"\x89HDF\r\n\x1a\n\x03\x08\x08", 48  # version 3, offsets and lengths of 8 bytes
FLAGS, END = 11, slice(28, 36)  # positions of the consistency flags and of the end-of-file address


class Superblock(NamedTuple):
    """Describe a superblock.

    is_marked: whether consistency flags are set; is_complete: whether the file extends to its end-of-file
    address.
    """

    is_marked: bool
    is_complete: bool


def read(path: Path) -> Superblock | None:
    """Return the `Superblock` of a file; None if it is not of version 3, damaged, or unreadable."""
    with suppress(OSError), open(path, "rb") as file:
        return _parse(file.fileno())
    return None


def clear(path: Path, is_written: Callable[[], bool]) -> None:
    """Clear the consistency flags of a file whose writer is dead, and set its end-of-file address.

    This is what `h5clear -s --increment=0` does. is_written: returns whether the writer is alive. No effect
    if the file is not writable, or if another program has it open. Safe while the run is being started: a
    start never writes to the existing file, but builds a new one and renames it. So if no writer is alive
    after the file was opened here, none will write to it later.
    """
    with suppress(OSError), open(path, "r+b", buffering=0) as file:
        descriptor = file.fileno()
        if is_written():
            return
        fcntl.flock(
            descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB
        )  # HDF5 holds this lock while another program writes
        if (found := _parse(descriptor)) and found.is_marked and found.is_complete:
            content = bytearray(os.pread(descriptor, SIZE, 0))
            content[FLAGS] = 0
            # A killed writer may have added data, and an index that points to them, without updating this
            # address.
            content[END] = os.fstat(descriptor).st_size.to_bytes(8, "little")
            content[-4:] = _lookup3(content[:-4]).to_bytes(4, "little")
            os.pwrite(descriptor, content, 0)


def _parse(descriptor: int) -> Superblock | None:
    content = os.pread(descriptor, SIZE, 0)
    if len(content) < SIZE or not content.startswith(SIGNATURE):
        return None
    if int.from_bytes(content[-4:], "little") != _lookup3(content[:-4]):
        return None
    end = int.from_bytes(content[END], "little")
    return Superblock(bool(content[FLAGS]), os.fstat(descriptor).st_size >= end)


def _lookup3(data: bytes | bytearray) -> int:
    """Return Jenkins' hash `hashlittle` with initial value 0, as used by HDF5. len(data): a multiple of 4."""
    words = [int.from_bytes(data[start : start + 4], "little") for start in range(0, len(data), 4)]
    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    while len(words) > 3:
        a, b, c = (state + word for state, word in zip((a, b, c), words))
        for bits in (4, 6, 8, 16, 19, 4):
            a = (a - c) & 0xFFFFFFFF ^ _rotated(c, bits)
            a, b, c = b, c + b, a
        words = words[3:]
    a, b, c = (state + word for state, word in zip((a, b, c), [*words, 0, 0, 0]))
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotated(b, bits) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b


def _rotated(word: int, bits: int) -> int:
    """Rotate a 32-bit word to the left."""
    word &= 0xFFFFFFFF
    return (word << bits | word >> 32 - bits) & 0xFFFFFFFF
