"""Model what clients do for pay, and what the server should pay.

A client fills a share u of the gap between its labels and a uniform mix by generating images at its own cost,
for p + r u.

    N(u) = n / (1 - gamma u), samples with generated ones; gamma = 1 - 1 / R, R n samples in a uniform mix
    m(u) = n gamma u / (1 - gamma u), images that it generates
    C(u) = C0 + c m(u), and its utility p + r u - C(u)

The resulting mix of labels is (1 - u) times the client's own plus u times the uniform one, so its distance
from uniform is (1 - u) EMD. Money is in joules: a client values its energy at 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from genfl_mpi.util.errors import UserError

BISECTIONS = 60
MISREPORTED_COSTS = (0.5, 0.8, 0.95, 1.05, 1.25, 2.0)  # factors on the true cost of an image


class Clients(NamedTuple):
    """What the incentive model knows of each client, float64 (N,).

    samples: n. gap: gamma. emd: from its labels to the uniform mix. fixed: C0 in J. image: c in J. weight:
    its share of all samples.
    """

    samples: np.ndarray
    gap: np.ndarray
    emd: np.ndarray
    fixed: np.ndarray
    image: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Equilibrium:
    """The outcome of a price.

    share: float64 (N,), u of each client, 0 for one that does not participate. joins: bool (N,). utility:
    float64 (N,). images: float64 (N,). payments: by the server. emd: remaining mean distance from uniform,
    weighted by samples. objective: value times emd + payments. welfare: worth of the reduced emd minus the
    clients' costs.
    """

    price: float
    share: np.ndarray
    joins: np.ndarray
    utility: np.ndarray
    images: np.ndarray
    payments: float
    emd: float
    objective: float
    welfare: float


def describe_clients(histograms: np.ndarray, fixed: np.ndarray | float, image: np.ndarray | float) -> Clients:
    """Return the `Clients` with label counts int (N, classes).

    fixed: what participation costs each, J (N,). image: what an image costs, J.
    """
    samples, classes = histograms.sum(1).astype(np.float64), histograms.shape[1]
    uniform = histograms.max(1) * classes  # samples when every label is as frequent as the most frequent one
    emd = np.abs(histograms / samples[:, None] - 1 / classes).sum(1)
    return Clients(
        samples,
        1 - samples / uniform,
        emd,
        np.broadcast_to(fixed, samples.shape).astype(np.float64),
        np.broadcast_to(image, samples.shape).astype(np.float64),
        samples / samples.sum(),
    )


def images(clients: Clients, share: np.ndarray) -> np.ndarray:
    """Return m(u), float64 (N,)."""
    return clients.samples * clients.gap * share / (1 - clients.gap * share)


def cost(clients: Clients, share: np.ndarray) -> np.ndarray:
    """Return C(u), float64 (N,)."""
    return clients.fixed + clients.image * images(clients, share)


def best_response(clients: Clients, price: np.ndarray | float) -> np.ndarray:
    """Return u* of each client that participates, float64 (N,). price: r, for all or for each.

    It is 0 up to the price c n gamma, 1 from c n gamma / (1 - gamma)^2 on, and (1 - sqrt(c n gamma / r)) /
    gamma in between. A client without a gap has nothing to fill: 0.
    """
    first = clients.image * clients.samples * clients.gap
    gap = np.where(clients.gap > 0, clients.gap, 1.0)
    share = np.clip((1 - np.sqrt(first / np.maximum(price, 1e-300))) / gap, 0, 1)
    return np.where(clients.gap > 0, share, 0.0)


def utility(clients: Clients, base: float, price: np.ndarray | float, share: np.ndarray) -> np.ndarray:
    """Return p + r u - C(u), float64 (N,)."""
    return base + price * share - cost(clients, share)


def equilibrium(clients: Clients, base: float, price: float, value: float) -> Equilibrium:
    """Return the `Equilibrium` at the price r for filling the whole gap and the base pay p for participation.

    A client that would lose does not participate (individual rationality). value: worth to the server, J, of
    reducing the mean EMD by one.
    """
    share = best_response(clients, price)
    gain = utility(clients, base, price, share)
    joins = gain >= 0
    share, gain = np.where(joins, share, 0.0), np.where(joins, gain, 0.0)
    payments = float((base + price * share)[joins].sum())
    emd, before = float(clients.weight @ (clients.emd * (1 - share))), float(clients.weight @ clients.emd)
    spent = float(cost(clients, share)[joins].sum())
    return Equilibrium(
        price,
        share,
        joins,
        gain,
        np.where(joins, images(clients, share), 0.0),
        payments,
        emd,
        value * emd + payments,
        value * (before - emd) - spent,
    )


def best_price(clients: Clients, base: float, value: float, budget: float) -> Equilibrium:
    """Return the `Equilibrium` at the price r of the least objective with payments within the budget.

    Between the prices at which a client joins, or starts or completes filling its gap, the objective is
    A r - B sqrt(r) + D / sqrt(r) plus a constant. It is convex in sqrt(r), so each
    such piece has one minimum.
    Raises UserError if even r = 0 exceeds the budget.
    """

    def at(price: float) -> Equilibrium:
        return equilibrium(clients, base, price, value)

    if (nothing := at(0.0)).payments > budget:
        raise UserError(
            f"the budget of {budget:g} J does not cover the base pay of the clients that participate, "
            f"{nothing.payments:g} J; raise --budget or lower --base"
        )
    lows, highs, (fixed, paid, a, b, d) = _pieces(clients, base, value)
    low, high = np.sqrt(lows), np.sqrt(np.nextafter(highs, 0))
    # Payments rise with the price: the highest affordable one of each piece solves a quadratic equation.
    with np.errstate(divide="ignore", invalid="ignore"):
        affordable = (b + np.sqrt(b**2 + 4 * a * (budget - paid))) / (2 * a)
    high = np.where(a > 0, np.fmin(high, affordable), low)
    is_affordable = (paid + low * (a * low - b) <= budget) & (low <= high)
    best, end = low, high
    for _ in range(BISECTIONS):  # for the root of the derivative, times s^2; an end if there is none
        middle = (best + end) / 2
        falls = 2 * a * middle**3 - b * middle**2 < d
        best, end = np.where(falls, middle, best), np.where(falls, end, middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        objective = fixed + paid + best * (a * best - b) + np.where(d > 0, d / best, 0.0)
    piece = np.where(is_affordable, objective, np.inf).argmin()
    prices = {lows[piece], best[piece] ** 2, end[piece] ** 2}
    found = [at(_highest_affordable(at, lows[piece], price, budget)) for price in sorted(prices)]
    return min((one for one in [nothing, *found] if one.payments <= budget), key=lambda one: one.objective)


def _pieces(
    clients: Clients, base: float, value: float
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Return the pieces of the objective as functions of the price r, in ascending order.

    Returns (lows, highs, (fixed, paid, a, b, d)), float64 (pieces,) each: in [low, high) the server pays
    paid + a r - b sqrt(r), and the value of the remaining EMD is fixed + d / sqrt(r).
    """
    joins = _joining_prices(clients, base)
    first = clients.image * clients.samples * clients.gap
    starts, fills = np.maximum(joins, first), np.maximum(joins, first / (1 - clients.gap) ** 2)
    has_gap = clients.gap > 0
    events = np.concatenate([joins, starts[has_gap], fills[has_gap]])
    lows = np.unique(np.append(events[np.isfinite(events)], 0.0))

    def summed(*changes: tuple[np.ndarray, np.ndarray | float]) -> np.ndarray:
        """Sum over clients what changes from certain prices on."""
        total = np.zeros(len(lows) + 1)
        for prices, amounts in changes:
            np.add.at(total, np.searchsorted(lows, prices), amounts)
        return total.cumsum()[:-1]

    starts, fills, gap, first = starts[has_gap], fills[has_gap], clients.gap[has_gap], first[has_gap]
    worth, root = value * (clients.weight * clients.emd)[has_gap], np.sqrt(first) / gap
    return (
        lows,
        np.append(lows[1:], 2 * lows[-1] + 1),  # the objective only rises with the price after the last
        (
            value * (clients.weight @ clients.emd)
            - summed((starts, worth / gap), (fills, worth - worth / gap)),
            summed((joins, base)),
            summed((starts, 1 / gap), (fills, 1 - 1 / gap)),
            summed((starts, root), (fills, -root)),
            summed((starts, worth * root), (fills, -worth * root)),
        ),
    )


def _highest_affordable(at: Callable[[float], Equilibrium], low: float, high: float, budget: float) -> float:
    """Return the highest price in [low, high] with payments within the budget. `low` must be affordable."""
    if at(high).payments <= budget:
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle).payments > budget else (middle, high)
    return low


def _joining_prices(clients: Clients, base: float) -> np.ndarray:
    """Return the price from which each client participates, float64 (N,): infinite if never, 0 if always."""
    low, high = np.zeros(len(clients.samples)), np.full(len(clients.samples), 1.0)

    def gain(price: np.ndarray) -> np.ndarray:
        return utility(clients, base, price, best_response(clients, price))

    for _ in range(BISECTIONS):
        high = np.where(gain(high) < 0, 2 * high, high)
    never = gain(high) < 0
    for _ in range(2 * BISECTIONS):
        middle = (low + high) / 2
        enough = gain(middle) >= 0
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(never, np.inf, np.where(gain(np.zeros_like(low)) >= 0, 0.0, high))


def misreporting(
    clients: Clients, base: float, value: float, budget: float, numbers: Iterable[int]
) -> np.ndarray:
    """Return what each client in `numbers` could gain by misreporting, J, float64 (numbers,), >= 0.

    The client alone reports MISREPORTED_COSTS times its true cost of an image, the server sets its price
    accordingly, and the client responds to this price in its own best interest.
    """
    honest, gains = best_price(clients, base, value, budget), []
    for n in numbers:
        gain = 0.0
        for factor in MISREPORTED_COSTS:
            image = clients.image.copy()
            image[n] *= factor
            price = best_price(clients._replace(image=image), base, value, budget).price
            response = utility(clients, base, price, best_response(clients, price))[n]
            gain = max(gain, max(0.0, response) - honest.utility[n])
        gains.append(gain)
    return np.array(gains)
