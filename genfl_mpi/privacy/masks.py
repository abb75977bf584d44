"""Masks of secure aggregation: streams of ChaCha20 that are added modulo 2**64 and cancel in the sum.

Client n masks its integers x_n with a seed b_n of its own and a seed s_nm shared with each neighbour m:

    y_n = x_n + PRG(b_n) + sum_{m > n} PRG(s_nm) - sum_{m < n} PRG(s_nm)        mod 2**64

Source: Bonawitz et al. 2017. A seed is used once: keys are drawn anew in every round.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from genfl_mpi.util.errors import UserError

# (sign, seed): a mask that is added (1) or subtracted (-1)
Term: TypeAlias = tuple[int, bytes]
# (seed, start) -> function that fills its argument with the stream's next integers, from `start` on
Expand: TypeAlias = Callable[[bytes, int], Callable[[np.ndarray], None]]

BLOCK = 32768  # integers masked at a time, which stay in the cache: 256 KiB
STREAM_BLOCK = 8  # integers of a block of ChaCha20; a stream can start at any block


def check_installed() -> None:
    """Raise UserError if the package `cryptography` is missing."""
    if importlib.util.find_spec("cryptography") is None:
        raise UserError(
            "privacy.secure_aggregation needs the package cryptography; pip install 'genfl_mpi[privacy]'"
        )


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key of a private key. Both have 32 bytes."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """Return the seed, 32 bytes, that two clients share: SHA-256 of their X25519 agreement."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return hashlib.sha256(b"genfl_mpi pairwise mask" + shared).digest()


def chacha20(seed: bytes, start: int) -> Callable[[np.ndarray], None]:
    """Return a function that fills uint64 arrays with the stream of a seed, from the integer `start` on.

    start: a multiple of STREAM_BLOCK.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    counter = (start // STREAM_BLOCK).to_bytes(8, "little") + bytes(8)
    encryptor = Cipher(algorithms.ChaCha20(seed, counter), mode=None).encryptor()

    def fill(block: np.ndarray) -> None:
        encryptor.update_into(_ZEROS[: block.nbytes], block.view(np.uint8).data)

    return fill


_ZEROS = memoryview(bytes(8 * BLOCK))


def add_masks(units: np.ndarray, terms: Sequence[Term], start: int = 0, expand: Expand = chacha20) -> None:
    """Add masks to integers in place, modulo the range of their type.

    units: unsigned integers (n,), in practice uint64, the part of the vector from `start` on. terms: the
    masks. expand: the generator of the masks.
    """
    streams = [(sign, expand(seed, start)) for sign, seed in terms]
    mask = np.empty(min(BLOCK, len(units)), units.dtype)
    for first in range(0, len(units), BLOCK):
        block = units[first : first + BLOCK]
        part = mask[: len(block)]
        for sign, fill in streams:
            fill(part)
            if sign > 0:
                block += part
            else:
                block -= part
