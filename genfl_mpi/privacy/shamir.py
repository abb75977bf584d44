"""Shamir's secret sharing: any `threshold` shares give the secret, fewer give no information about it.

Source: Shamir 1979. The secret is the constant term of a random polynomial over a prime field; a share is the
polynomial's value at a holder's point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PRIME = 2**256 + 297  # the smallest prime above 2**256, so that every secret of 32 bytes is an element
SECRET_BYTES = 32
SHARE_BYTES = 33
# Random bytes of a coefficient: the remainder modulo PRIME is uniform up to 2**-127.
COEFFICIENT_BYTES = 48


def split(secret: bytes, threshold: int, points: Iterable[int], rng: np.random.Generator) -> dict[int, int]:
    """Return the shares of a secret of 32 bytes: {point: share}.

    threshold: shares that are needed to recover it. points: of the holders, distinct and from 1 on. rng:
    draws the polynomial; equal generators give the same polynomial, whatever the points.
    """
    random = rng.bytes(COEFFICIENT_BYTES * (threshold - 1))
    coefficients = [
        int.from_bytes(random[start : start + COEFFICIENT_BYTES], "little") % PRIME
        for start in range(0, len(random), COEFFICIENT_BYTES)
    ]
    coefficients.append(int.from_bytes(secret, "little"))  # the highest power first
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % PRIME
        shares[point] = value
    return shares


def recover(shares: Mapping[int, int]) -> bytes:
    """Return the secret from as many shares as its threshold: {point: share}.

    Raises OverflowError if the shares do not belong to a secret of 32 bytes.
    """
    weights = _weights(tuple(shares))
    value = sum(weight * share for weight, share in zip(weights, shares.values())) % PRIME
    return value.to_bytes(SECRET_BYTES, "little")


@lru_cache(64)
def _weights(points: tuple[int, ...]) -> list[int]:
    """Return the weights with which values at these points give the polynomial's value at 0 (Lagrange)."""
    weights = []
    for one in points:
        above = below = 1
        for other in points:
            if other != one:
                above, below = above * other % PRIME, below * (other - one) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights
