"""What clients do for pay, and what the server should pay: a client repairs a share u of the gap between its labels and an even
mix by generating images, at its own cost, for p + r u.

    N(u) = n / (1 - gamma u), samples with those that it makes; gamma = 1 - 1 / R, with R n the samples of an even mix
    m(u) = n gamma u / (1 - gamma u), images that it makes
    C(u) = C0 + c m(u), and its utility p + r u - C(u)

The mix of labels that results is (1 - u) times its own and u times the even one, so that its distance from even is (1 - u) EMD.
Money is in joules: a client values its energy at 1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from genfl_mpi.util.errors import UserError

STEPS = 60  # of a bisection
REPORTS = (0.5, 0.8, 0.95, 1.05, 1.25, 2.0)  # times its cost of an image, what a client that misreports says


class Clients(NamedTuple):
    """float64 (N,) each: samples n; gap gamma; emd, of its labels to the even mix; fixed C0 in J; image c in J; weight, its
    share of all samples."""

    samples: np.ndarray
    gap: np.ndarray
    emd: np.ndarray
    fixed: np.ndarray
    image: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Equilibrium:
    """What follows from a price. share: float64 (N,), u of each client, 0 for who stays away; joins: bool (N,); utility: float64
    (N,); images: float64 (N,); payments: what the server pays; emd: mean distance from even that is left, by samples; objective:
    value emd + payments; welfare: what the repair is worth less what it costs the clients."""

    price: float
    share: np.ndarray
    joins: np.ndarray
    utility: np.ndarray
    images: np.ndarray
    payments: float
    emd: float
    objective: float
    welfare: float


def clients_of(histograms, fixed, image):
    """`Clients` with the label counts int (N, classes), who pay `fixed` J (N,) to take part and `image` J for an image."""
    samples, classes = histograms.sum(1).astype(np.float64), histograms.shape[1]
    even = histograms.max(1) * classes  # samples when every label has as many as the most frequent one
    emd = np.abs(histograms / samples[:, None] - 1 / classes).sum(1)
    return Clients(
        samples,
        1 - samples / even,
        emd,
        np.broadcast_to(fixed, samples.shape).astype(np.float64),
        np.broadcast_to(image, samples.shape).astype(np.float64),
        samples / samples.sum(),
    )


def images(clients, share):
    """m(u), float64 (N,)."""
    return clients.samples * clients.gap * share / (1 - clients.gap * share)


def cost(clients, share):
    """C(u), float64 (N,)."""
    return clients.fixed + clients.image * images(clients, share)


def best_response(clients, price):
    """u* of each client that takes part, float64 (N,), at a price for all or for each: 0 up to the price c n gamma, 1 from
    c n gamma / (1 - gamma)^2 on, and in between (1 - sqrt(c n gamma / r)) / gamma. One without a gap has nothing to repair: 0."""
    first = clients.image * clients.samples * clients.gap
    gap = np.where(clients.gap > 0, clients.gap, 1.0)
    share = np.clip((1 - np.sqrt(first / np.maximum(price, 1e-300))) / gap, 0, 1)
    return np.where(clients.gap > 0, share, 0.0)


def utility(clients, base, price, share):
    """p + r u - C(u), float64 (N,)."""
    return base + price * share - cost(clients, share)


def equilibrium(clients, base, price, value):
    """The `Equilibrium` at the price r for a whole repair and `base` p for taking part. Who would lose stays away (individual
    rationality). value: J that a unit less of mean EMD is worth to the server."""
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


def best_price(clients, base, value, budget):
    """The `Equilibrium` that the server prefers: the price r of the least value emd + payments, payments within the `budget`.

    Between the prices at which a client joins, begins or ends its repair, the objective is smooth: each such piece is searched
    by itself, with both its ends, on either side of which it may jump. Raises UserError if even r = 0 is above the budget.
    """

    def at(price):
        return equilibrium(clients, base, price, value)

    if (nothing := at(0.0)).payments > budget:
        raise UserError(
            f"the budget of {budget:g} J does not pay those who take part for the base pay alone, "
            f"which is {nothing.payments:g} J"
        )
    first = clients.image * clients.samples * clients.gap
    corners = np.concatenate([first, first / (1 - clients.gap) ** 2, _joining(clients, base)])
    corners = np.unique(corners[np.isfinite(corners) & (corners > 0)])
    found = [nothing]
    for low, high in zip(np.concatenate([[0.0], corners[:-1]]), corners):
        if at(low).payments > budget:  # payments rise with the price
            break
        top = np.nextafter(high, 0)
        if at(top).payments > budget:
            top = _affordable(at, low, top, budget)
        if low < top:
            piece = minimize_scalar(
                lambda price: at(price).objective,
                bounds=(low, top),
                method="bounded",
                options={"xatol": 1e-6 * top},
            )
            found.append(at(piece.x))
        found += [at(top), at(high)]
    return min((one for one in found if one.payments <= budget), key=lambda one: one.objective)


def _affordable(at, low, high, budget):
    """The highest price between two whose payments are within the budget, as those at `low` are."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle).payments > budget else (middle, high)
    return low


def _joining(clients, base):
    """The price from which each client takes part, float64 (N,), infinite for one that never does; 0 for one that always does."""
    low, high = np.zeros(len(clients.samples)), np.full(len(clients.samples), 1.0)

    def gain(price):
        return utility(clients, base, price, best_response(clients, price))

    for _ in range(STEPS):
        high = np.where(gain(high) < 0, 2 * high, high)
    never = gain(high) < 0
    for _ in range(2 * STEPS):
        middle = (low + high) / 2
        enough = gain(middle) >= 0
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(never, np.inf, np.where(gain(np.zeros_like(low)) >= 0, 0.0, high))


def misreporting(clients, base, value, budget, count):
    """By how many joules each of the first `count` clients could be better off if it alone reported another cost of an image,
    REPORTS times its own, by which the server then sets the price, and did what is best for it at that: float64 (count,), at
    least 0."""
    honest = best_price(clients, base, value, budget)
    most = np.zeros(count)
    for n in range(count):
        for factor in REPORTS:
            image = clients.image.copy()
            image[n] *= factor
            price = best_price(clients._replace(image=image), base, value, budget).price
            gain = utility(clients, base, price, best_response(clients, price))[n]
            most[n] = max(most[n], max(0.0, gain) - honest.utility[n])
    return most
