"""Randomness as a function of (seed, purpose, round, client).

Every random draw in the project comes from a generator made here, never from a shared or global stream.
Therefore a draw does not depend on the rank that makes it, on earlier draws, or on interruptions of the run.
"""

import hashlib

import numpy as np

# The position is part of every key: append new purposes at the end, never reorder. User code takes other
# names.
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
    "transform",
    "test subset",
    "fine tuning",
    "distillation",
    "calibration",
    "data-free",
    "data-free generator",
    "attackers",
    "poison",
    "local test",
    "personal",
    "mask key",
    "key shares",
    "self mask shares",
    "neighbours",
    "privacy noise",
    "noise share",
    "search",
    "cell",
)


def _sequence(seed: int, purpose: str, *position: int | np.integer) -> np.random.SeedSequence:
    if purpose in PURPOSES:
        number = PURPOSES.index(purpose)
    else:
        number = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.SeedSequence(seed, spawn_key=(number, *map(int, position)))


def generator(seed: int, purpose: str, *position: int | np.integer) -> np.random.Generator:
    """Make a NumPy generator for one purpose: one of PURPOSES, or any other name for user code.

    position: non-negative integers, usually (round,) or (round, client). Equal arguments give the same
    stream; different arguments give independent streams.
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, *position)))


def integer(seed: int, purpose: str, *position: int | np.integer) -> int:
    """Return a 63-bit integer that seeds a generator of another library (torch.Generator)."""
    return int(_sequence(seed, purpose, *position).generate_state(1, np.uint64)[0] >> np.uint64(1))
