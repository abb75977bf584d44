"""Which rank trains which client, and how long rank 0 waits, by measured speeds. No result depends on it."""

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


class Pace:
    """How long clients take, by what was measured: each rank's speed, in samples a second, and what a client costs beside its
    samples, expressed in samples, which is the same on all ranks.

    That overhead is where the straight line of least squares through the clients' seconds, newer rounds counting for more,
    meets the axis.
    """

    def __init__(self, ranks):
        self.speeds = [Speed() for _ in range(ranks)]
        self.overhead = 0.0
        self.moments = np.zeros((2, 3))  # sums over clients of (1, units)^T (1, units, seconds)

    def measure(self, units, seconds, ranks):
        """Of the clients of a round: samples that each has worked on (cohort,), its seconds, and its rank."""
        # On a slow rank a second is worth fewer samples: all are brought to the mean speed.
        rates = self.rates()
        points = np.stack([np.ones(len(units)), units, seconds * rates[ranks] / rates.mean()])
        self.moments = 0.7 * self.moments + 0.3 * points[:2] @ points.T
        (count, total, time), (_, square, product) = self.moments
        spread, slope = count * square - total**2, count * product - total * time
        if spread > 1e-9 * total**2 and slope > 0:
            self.overhead = max(0.0, (square * time - total * product) / slope)
        for rank, speed in enumerate(self.speeds):
            own = ranks == rank
            speed.measure((units[own] + self.overhead).sum(), seconds[own].sum())

    def seconds_of_others(self, costs, ranks):
        """Predict the seconds that the slowest rank other than 0 trains: 0 as long as nothing was measured.

        costs: float (clients,), as of `assign`; ranks: int (clients,), the rank of each client.
        """
        if all(speed.rate is None for speed in self.speeds):
            return 0.0
        seconds = np.bincount(ranks, costs / self.rates()[ranks], minlength=len(self.speeds))
        return seconds[1:].max(initial=0.0)

    def memory(self, generation):
        """Return the measured speeds for a checkpoint: float64 arrays by name, 0 for a rate never measured.

        generation: the `Speed`s of rank 0's generation, a pair.
        """
        rates = [speed.rate or 0.0 for speed in self.speeds]
        return {
            "rates": np.array(rates),
            "overhead": np.array([self.overhead]),
            "moments": self.moments,
            "generation": np.array([speed.rate or 0.0 for speed in generation]),
        }

    def recall(self, memory, generation):
        """Take back what `memory` returned; from another number of ranks, each rank gets the mean rate.

        Ignores a memory that is incomplete or malformed: nothing but the schedule depends on it.
        """
        ranks = np.size(memory.get("rates"))
        shapes = {"rates": (ranks,), "overhead": (1,), "moments": (2, 3), "generation": (2,)}
        if not all(_is_measured(memory.get(name), shape) for name, shape in shapes.items()):
            return
        rates = memory["rates"]
        if ranks != len(self.speeds):
            known = rates[rates > 0]
            rates = np.full(len(self.speeds), known.mean() if len(known) else 0.0)
        for speed, rate in zip([*self.speeds, *generation], [*rates, *memory["generation"]]):
            speed.rate = float(rate) or None
        self.overhead, self.moments = float(memory["overhead"][0]), memory["moments"]

    def rates(self):
        """A rate for each rank; one that was never measured is taken to be average, and all to be 1 when none was."""
        known = [speed.rate for speed in self.speeds if speed.rate is not None]
        return np.array([speed.rate or np.mean(known or [1.0]) for speed in self.speeds])


def _is_measured(array, shape):
    """Whether `array` is a float64 array of `shape` whose values are finite and not negative."""
    return (
        isinstance(array, np.ndarray)
        and array.shape == shape
        and array.dtype == np.float64
        and bool((np.isfinite(array) & (array >= 0)).all())
    )


def assign(costs, rates, busy, clients_per_batch=1):
    """Longest processing time first (Graham 1969): the next largest client goes to the rank that finishes it first.

    costs: float (cohort,), work of each client; rates: float (ranks,), work a second; busy: float, the seconds that
    rank 0 works as the server before it is free (infinite: it gets clients only if it is alone); clients_per_batch: clients, in
    their order, that are trained as one and go to one rank.
    Returns int (cohort,), the rank of each client.
    """
    count, costs = len(costs), np.add.reduceat(costs, np.arange(0, len(costs), clients_per_batch))
    finish = np.zeros(len(rates))
    finish[0] = busy
    ranks = np.empty(len(costs), dtype=np.int64)
    for client in np.argsort(-costs, kind="stable"):
        ends = finish + costs[client] / rates
        ranks[client] = ends.argmin()
        finish[ranks[client]] = ends[ranks[client]]
    return np.repeat(ranks, clients_per_batch)[:count]
