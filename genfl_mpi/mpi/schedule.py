"""Which rank trains which client. It never changes a result, so measured speed may steer it."""

import numpy as np


class Speed:
    """A measured rate in units a second, as a running mean. `rate` is None until the first measurement."""

    def __init__(self):
        self.rate = None

    def measure(self, units, seconds):
        if units > 0 and seconds > 0:
            new = units / seconds
            self.rate = new if self.rate is None else 0.7 * self.rate + 0.3 * new

    def seconds(self, units):
        """Predicted seconds for `units`: 0 for none, infinite as long as nothing was measured."""
        if units == 0:
            return 0.0
        return np.inf if self.rate is None else units / self.rate


def rates(speeds):
    """A rate for each rank; one that was never measured is taken to be average, and all to be 1 when none was."""
    known = [speed.rate for speed in speeds if speed.rate is not None]
    return np.array([speed.rate or np.mean(known or [1.0]) for speed in speeds])


def assign(costs, rates, busy):
    """Longest processing time first (Graham 1969): the next largest client goes to the rank that finishes it first.

    costs: float (cohort,), work of each client; rates: float (ranks,), work a second; busy: float, the seconds that
    rank 0 works as the server before it is free (infinite: it gets clients only if it is alone).
    Returns int (cohort,), the rank of each client.
    """
    finish = np.zeros(len(rates))
    finish[0] = busy
    ranks = np.empty(len(costs), dtype=np.int64)
    for client in np.argsort(-np.asarray(costs), kind="stable"):
        ends = finish + costs[client] / rates
        ranks[client] = ends.argmin()
        finish[ranks[client]] = ends[ranks[client]]
    return ranks
