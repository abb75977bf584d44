"""Randomness as a function of (seed, purpose, round, client).

Every random draw in the project comes from a generator made here, never from a shared or global stream. So a
draw does not depend on which rank makes it, on what was drawn before, or on where an interrupted run resumed.
"""

import hashlib

import numpy as np

# Part of every key: append new purposes at the end, never reorder. Users have words of their own.
PURPOSES = (
    "partition",
    "init",
    "cohort",
    "client",
    "augmented",
    "template",
    "image",
    "labels",
    "quality",
    "pool",
    "finetune",
    "synthetic",
    "bad clients",
    "spoil",
    "device",
    "position",
    "shadowing",
    "fading",
    "outage",
    "bootstrap",
    "candidates",
    "permutation",
    "validation",
    "dropout",
    "label cost",
    "probe",
)


def _sequence(seed, purpose, *position):
    if purpose in PURPOSES:
        number = PURPOSES.index(purpose)
    else:
        number = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.SeedSequence(seed, spawn_key=(number, *map(int, position)))


def generator(seed, purpose, *position):
    """A NumPy generator for one purpose: one of PURPOSES, or any other word for what is yours.

    `position` are non-negative integers: usually (round,) or (round, client). The same arguments give the same
    stream; any other arguments give an independent one.
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, *position)))


def integer(seed, purpose, *position):
    """A 63-bit integer, to seed a generator of another library (torch.Generator)."""
    return int(_sequence(seed, purpose, *position).generate_state(1, np.uint64)[0] >> np.uint64(1))
