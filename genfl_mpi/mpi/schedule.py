"""Schedule clients onto ranks by measured speeds, and predict rank 0's wait. No result depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Speed:
    """A measured rate in units a second, an exponential moving average.

    `rate` is None before the first measurement.
    """

    def __init__(self) -> None:
        self.rate: float | None = None

    def measure(self, units: float, seconds: float) -> None:
        """Update the rate by a measurement; ignore it unless units and seconds are positive."""
        if units > 0 and seconds > 0:
            new = units / seconds
            self.rate = new if self.rate is None else 0.7 * self.rate + 0.3 * new

    def seconds(self, units: float) -> float:
        """Predict the seconds for `units`: 0 for no units, else infinite before the first measurement."""
        if units == 0:
            return 0.0
        return np.inf if self.rate is None else units / self.rate


class Pace:
    """Measured cost of clients: the speed of each rank, in samples a second, and a client's fixed overhead.

    The overhead is expressed in samples and the same on all ranks: the intercept of a least-squares line
    through the clients' seconds, in which newer rounds have more weight.
    """

    def __init__(self, ranks: int):
        self.speeds = [Speed() for _ in range(ranks)]
        self.overhead = 0.0
        self.moments = np.zeros((2, 3))  # sums over clients of (1, units)^T (1, units, seconds)

    def measure(self, units: np.ndarray, seconds: np.ndarray, ranks: np.ndarray) -> None:
        """Update speeds and overhead by the clients of a round.

        units: samples that each processed; seconds: their time; ranks: their ranks; all (cohort,).
        """
        # Seconds are scaled to a rank of mean speed, because ranks differ in speed.
        rates = self.rates()
        points = np.stack([np.ones(len(units)), units, seconds * rates[ranks] / rates.mean()])
        self.moments = 0.7 * self.moments + 0.3 * points[:2] @ points.T
        (count, total, time), (_, square, product) = self.moments
        spread, slope = count * square - total**2, count * product - total * time
        if spread > 1e-9 * total**2 and slope > 0:
            self.overhead = max(0.0, (square * time - total * product) / slope)
        for rank, speed in enumerate(self.speeds):
            on_rank = ranks == rank
            speed.measure((units[on_rank] + self.overhead).sum(), seconds[on_rank].sum())

    def seconds_of_others(self, costs: np.ndarray, ranks: np.ndarray) -> float:
        """Predict the training seconds of the slowest rank other than 0: 0 before the first measurement.

        costs: float (clients,), as of `assign`; ranks: int (clients,), the rank of each client.
        """
        if all(speed.rate is None for speed in self.speeds):
            return 0.0
        seconds = np.bincount(ranks, costs / self.rates()[ranks], minlength=len(self.speeds))
        return seconds[1:].max(initial=0.0)

    def state(self, generation: Sequence[Speed]) -> dict[str, np.ndarray]:
        """Return the measured speeds for a checkpoint: float64 arrays by name, 0 for a rate never measured.

        generation: the `Speed`s of the ranks' generation, and last that of loading a generator.
        """
        return {
            "rates": np.array([speed.rate or 0.0 for speed in self.speeds]),
            "overhead": np.array([self.overhead]),
            "moments": self.moments,
            "generation": np.array([speed.rate or 0.0 for speed in generation]),
        }

    def restore(self, memory: Mapping[str, np.ndarray], generation: Sequence[Speed]) -> None:
        """Restore what `state` returned; if the number of ranks has changed, each gets the mean rate.

        Ignores a memory that is incomplete or malformed: only the schedule depends on it.
        """
        ranks, made = (np.size(memory.get(name, ())) for name in ("rates", "generation"))
        shapes = {"rates": (ranks,), "overhead": (1,), "moments": (2, 3), "generation": (max(made, 2),)}
        if not all(_is_measured(memory.get(name), shape) for name, shape in shapes.items()):
            return
        *makers, loading = generation
        _set_rates(self.speeds, memory["rates"])
        _set_rates(makers, memory["generation"][:-1])
        _set_rates([loading], memory["generation"][-1:])
        self.overhead, self.moments = float(memory["overhead"][0]), memory["moments"]

    def rates(self) -> np.ndarray:
        """Return a rate for each rank; ranks without measurement get the mean of the others, or 1."""
        known = [speed.rate for speed in self.speeds if speed.rate is not None]
        return np.array([speed.rate or np.mean(known or [1.0]) for speed in self.speeds])


class Balance:
    """Assign clients to ranks so that all ranks work for the same time over the whole run.

    For runs whose ranks do not wait for each other after each round. pace: measured by the same clients.
    seconds: float64 (ranks,), of finished clients. waiting: float64 (2, ranks), number and samples of those
    that are assigned and not finished; their seconds follow from the newest rates.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace, ranks = pace, len(pace.speeds)
        self.seconds, self.waiting = np.zeros(ranks), np.zeros((2, ranks))

    def assign(self, units: np.ndarray) -> np.ndarray:
        """Return the rank of each client, int (n,). units: samples that each will process."""
        costs, rates = units + self.pace.overhead, self.pace.rates()
        number, samples = self.waiting
        ranks = assign(costs, rates, self.seconds + (number * self.pace.overhead + samples) / rates)
        np.add.at(number, ranks, 1)
        np.add.at(samples, ranks, units)
        return ranks

    def measure(self, units: np.ndarray, seconds: np.ndarray, ranks: np.ndarray) -> None:
        """Count clients as finished, and update the pace; all (n,), as of `Pace.measure`."""
        number, samples = self.waiting
        np.subtract.at(number, ranks, 1)
        np.subtract.at(samples, ranks, units)
        np.add.at(self.seconds, ranks, seconds)
        self.pace.measure(units, seconds, ranks)


def _set_rates(speeds: Sequence[Speed], rates: np.ndarray) -> None:
    """Set rates, 0 for one never measured; if there are more or fewer speeds, each gets the mean rate."""
    if len(rates) != len(speeds):
        known = rates[rates > 0]
        rates = np.full(len(speeds), known.mean() if len(known) else 0.0)
    for speed, rate in zip(speeds, rates):
        speed.rate = float(rate) or None


def _is_measured(array: object, shape: tuple[int, ...]) -> bool:
    """Return whether `array` is a float64 array of `shape` with finite, non-negative values."""
    return (
        isinstance(array, np.ndarray)
        and array.shape == shape
        and array.dtype == np.float64
        and bool((np.isfinite(array) & (array >= 0)).all())
    )


def assign(
    costs: np.ndarray, rates: np.ndarray, busy: float | np.ndarray, clients_per_batch: int = 1
) -> np.ndarray:
    """Assign clients, or batches of images, to ranks, longest processing time first (Graham 1969).

    In descending order of cost, each client goes to the rank that finishes it first.

    costs: float (cohort,), work of each client; rates: float (ranks,), work a second; busy: seconds that rank
    0, or each rank (ranks,), works before it begins (infinite: it gets clients only if it is the only rank);
    clients_per_batch: number of consecutive clients that are trained as one batch and go to one rank. Returns
    int (cohort,), the rank of each client.
    """
    count, costs = len(costs), np.add.reduceat(costs, np.arange(0, len(costs), clients_per_batch))
    finish = np.zeros(len(rates))
    finish[: np.size(busy)] = busy
    ranks = np.empty(len(costs), dtype=np.int64)
    for client in np.argsort(-costs, kind="stable"):
        ends = finish + costs[client] / rates
        ranks[client] = ends.argmin()
        finish[ranks[client]] = ends[ranks[client]]
    return np.repeat(ranks, clients_per_batch)[:count]
