"""Seconds of masks in secure aggregation: one mask on one core, and those of a round with 30 % drop-outs.

python benchmarks/masks.py --weights 1600000 --cohort 10 --ranks 4
"""

import argparse
import statistics
import time

import numpy as np

from genfl_mpi.privacy import masks
from genfl_mpi.privacy.protocol import DROPPED, SURVIVED, Session

REPEATS = 5


def median_seconds(function):
    """Return the median of REPEATS runs of a function, after one that warms up."""
    function()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=1_600_000)
    parser.add_argument("--cohort", type=int, default=10)
    parser.add_argument("--dropped", type=float, default=0.3, help="share of the cohort")
    parser.add_argument("--ranks", type=int, default=4, help="ranks over which unmasking is divided")
    parser.add_argument("--neighbours", type=int, default=None)
    given = parser.parse_args()
    units = np.zeros(given.weights, dtype=np.uint64)
    one = median_seconds(lambda: masks.add_masks(units, [(1, bytes(range(32)))]))
    print(f"one mask of {given.weights:,} weights: {1e3 * one:.2f} ms, {units.nbytes / one / 1e9:.2f} GB/s")

    cohort, size = given.cohort, given.weights
    dropped = round(given.dropped * cohort)
    threshold = cohort - dropped if given.neighbours is None else None
    survived = np.arange(cohort) >= dropped
    keys = median_seconds(lambda: Session(1, 0, np.arange(cohort), threshold, given.neighbours).terms(0))
    session = Session(1, 0, np.arange(cohort), threshold, given.neighbours)
    terms = session.terms(0)
    client = median_seconds(lambda: masks.add_masks(units, terms))
    print(f"a client of {cohort}: keys {1e3 * keys:.2f} ms, {len(terms)} masks {1e3 * client:.1f} ms")

    recover = median_seconds(lambda: session.recover(survived))
    states, recovered = np.where(survived, SURVIVED, DROPPED), session.recover(survived)
    remove = session.masks_to_remove(states, recovered)
    part = units[: size // given.ranks // masks.STREAM_BLOCK * masks.STREAM_BLOCK]
    seconds = median_seconds(lambda: masks.add_masks(part, remove))
    print(
        f"unmasking without {dropped} of {cohort}: secrets {1e3 * recover:.2f} ms on rank 0, "
        f"{len(remove)} masks {1e3 * seconds:.1f} ms on each of {given.ranks} ranks"
    )


if __name__ == "__main__":
    main()
