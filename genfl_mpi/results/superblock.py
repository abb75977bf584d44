"""The superblock of an HDF5 file: its consistency flags say that a writer has the file open, also after a kill.

Version 3 (HDF5 file format specification, II.A) is 48 bytes: signature, version, sizes of offsets and
lengths, consistency flags, four addresses (base, extension, end of file, root group), and Jenkins' lookup3 of
all these.
"""

import fcntl
import os
from contextlib import suppress
from typing import NamedTuple

SIGNATURE, SIZE = b"\x89HDF\r\n\x1a\n\x03\x08\x08", 48  # version 3, offsets and lengths of 8 bytes
FLAGS, END = 11, slice(28, 36)  # places of the consistency flags and of the end-of-file address


class Superblock(NamedTuple):
    """marked: whether consistency flags are set; whole: whether the file is as long as it says."""

    marked: bool
    whole: bool


def read(path):
    """The `Superblock` of a file; None if it has none of version 3, a damaged one, or cannot be read."""
    with suppress(OSError), open(path, "rb") as file:
        return _parse(file.fileno())


def clear(path, is_written):
    """Clear the consistency flags of a file whose writer is dead, and set its end-of-file address, as
    `h5clear -s --increment=0` does.

    is_written: a function that says whether the writer is alive. Without effect if the file may not be
    changed, or if another program has it open. Safe beside a start of the run: a start never writes to the
    file that is there, but builds a new one and renames it. So if nobody is seen writing after the file was
    opened here, nobody will ever write to it again.
    """
    with suppress(OSError), open(path, "r+b", buffering=0) as file:
        descriptor = file.fileno()
        if is_written():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # HDF5 has it while another program writes
        if (found := _parse(descriptor)) and found.marked and found.whole:
            content = bytearray(os.pread(descriptor, SIZE, 0))
            content[FLAGS] = 0
            # A killed writer may have added data, and an index that points to them, without this address.
            content[END] = os.fstat(descriptor).st_size.to_bytes(8, "little")
            content[-4:] = _lookup3(content[:-4]).to_bytes(4, "little")
            os.pwrite(descriptor, content, 0)


def _parse(descriptor):
    content = os.pread(descriptor, SIZE, 0)
    if len(content) < SIZE or not content.startswith(SIGNATURE):
        return None
    if int.from_bytes(content[-4:], "little") != _lookup3(content[:-4]):
        return None
    end = int.from_bytes(content[END], "little")
    return Superblock(bool(content[FLAGS]), os.fstat(descriptor).st_size >= end)


def _lookup3(data):
    """Jenkins' hash `hashlittle` with the initial value 0, as HDF5 uses it, of bytes of which there are a
    multiple of 4."""
    words = [int.from_bytes(data[place : place + 4], "little") for place in range(0, len(data), 4)]
    a = b = c = (0xDEADBEEF + len(data)) & 0xFFFFFFFF
    while len(words) > 3:
        a, b, c = (one + word for one, word in zip((a, b, c), words))
        for turn in (4, 6, 8, 16, 19, 4):
            a = (a - c) & 0xFFFFFFFF ^ _turned(c, turn)
            a, b, c = b, c + b, a
        words = words[3:]
    a, b, c = (one + word for one, word in zip((a, b, c), [*words, 0, 0, 0]))
    for turn in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _turned(b, turn) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b


def _turned(word, bits):
    word &= 0xFFFFFFFF
    return (word << bits | word >> 32 - bits) & 0xFFFFFFFF
