"""Find what the server of a run should pay clients for generating missing labels: `incentive`."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from genfl_mpi.analysis import cost_figures
from genfl_mpi.analysis.pricing import describe_world, in_worlds, read, worlds_for
from genfl_mpi.config.loading import validate
from genfl_mpi.edge import incentive
from genfl_mpi.edge.rounds import image_joules
from genfl_mpi.federation import workload
from genfl_mpi.results import reader
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import WIDTH

if TYPE_CHECKING:
    from genfl_mpi.config.world import World

FIGURE_PRICES = 400  # points per curve
MAX_MISREPORTING = 20  # clients that are tested: each costs a price search per report


def command(options: Namespace) -> Iterator[str]:
    """Yield the lines of the `incentive` command. options: its parsed arguments. Raises UserError."""
    for name in ("value", "base", "budget"):
        if (number := getattr(options, name)) is not None and not 0 <= number < np.inf:
            raise UserError(f"--{name} must be a number of joules, at least 0, not {number:g}")
    clients, name, world = _read_clients(options.file, [options.world] if options.world else [])
    whole = incentive.cost(clients, np.ones(len(clients.samples))) - clients.fixed
    before = float(clients.weight @ clients.emd)
    if not before:
        raise UserError(
            f"{options.file}: every client has a uniform mix of labels; give a run with label skew"
        )
    value = 2 * whole.sum() / before if options.value is None else options.value
    base = float(np.median(clients.fixed)) if options.base is None else options.base
    budget = np.inf if options.budget is None else options.budget
    best = incentive.best_price(clients, base, value, budget)
    yield from textwrap.wrap(f"world {name}: {describe_world(world)}", WIDTH, subsequent_indent="  ")
    fixed = f"{clients.fixed.min():.4g} to {clients.fixed.max():.4g} J"
    yield f"{len(clients.samples)} clients; participation costs {fixed},"
    yield f"an image {clients.image[0]:.4g} J; mean EMD to a uniform mix {before:.3f}"
    yield f"base pay {base:.4g} J; one unit of EMD is worth {value:.4g} J to the server"
    yield from _table(best, clients, base, value, budget)
    corners = clients.image * clients.samples * clients.gap / (1 - clients.gap) ** 2
    limit = 1.2 * max(corners.max(), best.price)
    prices = np.linspace(0, min(limit, 6 * best.price) if best.price else limit, FIGURE_PRICES)
    found = [incentive.equilibrium(clients, base, price, value) for price in prices]
    output = options.output or Path(options.file).parent / "incentive.png"
    plotting.save(cost_figures.incentive(prices, found, best, before, budget), output)
    yield f"figure in {output}"


def _read_clients(path: str | Path, files: Sequence[str]) -> tuple[incentive.Clients, str, World]:
    """Return the `incentive.Clients` of a results file, and the name and settings of the world.

    Raises UserError.

    Participation costs a client the energy that it spent in the run, and an image the energy of its
    accelerator. files: YAML file of the world, if any.
    """
    run = read(path, [])
    worlds = worlds_for([run], files)
    [(name, world)] = worlds[0].items()
    if run.uncounted:
        raise UserError(
            f"{path}: the cost of an image of {run.uncounted} is unknown; give a run whose generator is a "
            "checkpoint"
        )
    if not run.trace.image_flops:
        raise UserError(
            f"{path}: has no generated images, so the cost of an image is unknown; "
            "give a run with method=genfl, sent or filled"
        )
    with reader.open_results(path) as file, reader.report_damage(path):
        held = workload.count_held_labels(file, validate(reader.read_config(file), str(path)))
    [priced] = in_worlds([run], worlds)
    fixed = priced.bill.client_joules
    image = image_joules(world.hardware, run.trace.image_flops)
    return incentive.describe_clients(held, fixed, image), name, world


def _table(
    best: incentive.Equilibrium, clients: incentive.Clients, base: float, value: float, budget: float
) -> Iterator[str]:
    """Yield lines of at most 80 columns: the outcome of the server's price."""
    count, joined = len(clients.samples), best.joins.sum()
    tried = min(count, MAX_MISREPORTING)
    # A bar only on a terminal, and only if it takes longer than a second.
    numbers = tqdm(range(tried), desc="misreporting", unit=" clients", disable=None, delay=1, leave=False)
    gains = incentive.misreporting(clients, base, value, budget, numbers)
    gaining = (gains > 1e-9 * max(1, best.payments)).sum()
    rows = {
        "price for filling the gap": f"{best.price:.4g} J",
        "participating clients": f"{joined} of {count}",
        "generating clients": f"{(best.share > 0).sum()}, {(best.share >= 1).sum()} of them the whole gap",
        "images they generate": f"{best.images.sum():.0f}",
        "payments": f"{best.payments:.4g} J" + (f" of {budget:.4g} J" if np.isfinite(budget) else ""),
        "remaining mean EMD": f"{best.emd:.3f}",
        "welfare": f"{best.welfare:.4g} J",
        "least gain of participants": f"{best.utility[best.joins].min() if joined else 0:.4g} J",
        "largest gain by misreporting": f"{gains.max():.4g} J, {gaining} of {tried} clients gain",
    }
    for name, value_text in rows.items():
        yield f"  {name:<30}{value_text}"
