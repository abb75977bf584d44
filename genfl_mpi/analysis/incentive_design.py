"""What the server of a run should pay its clients for generating what their labels lack: the `incentive` command."""

import numpy as np

from genfl_mpi.analysis import cost_figures
from genfl_mpi.analysis.pricing import in_worlds, read, worlds_for
from genfl_mpi.config.loading import validate
from genfl_mpi.edge import incentive
from genfl_mpi.edge.rounds import image_joules
from genfl_mpi.federation import workload
from genfl_mpi.results import reader
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError

PRICES = 400  # points of the figure
MOST_MISREPORTING = 20  # clients of which it is tried: each is an equilibrium for every report


def command(options):
    """Lines of the `incentive` command. options: its parsed arguments. Raises UserError."""
    for name in ("value", "base", "budget"):
        if (number := getattr(options, name)) is not None and not 0 <= number < np.inf:
            raise UserError(f"--{name} must be a number of joules, at least 0, not {number:g}")
    clients = clients_of(options.file, [options.world] if options.world else [])
    whole = incentive.cost(clients, np.ones(len(clients.samples))) - clients.fixed
    before = float(clients.weight @ clients.emd)
    if not before:
        raise UserError(
            f"{options.file}: every client has as many samples of each label; there is nothing to repair"
        )
    value = 2 * whole.sum() / before if options.value is None else options.value
    base = float(np.median(clients.fixed)) if options.base is None else options.base
    budget = np.inf if options.budget is None else options.budget
    best = incentive.best_price(clients, base, value, budget)
    yield f"{len(clients.samples)} clients, of which taking part costs {clients.fixed.min():.4g} to {clients.fixed.max():.4g} J,"
    yield f"and an image {clients.image[0]:.4g} J; mean EMD to an even mix {before:.3f}"
    yield f"taking part is paid {base:.4g} J; to the server a unit of EMD is worth {value:.4g} J"
    yield from table(best, clients, base, value, budget)
    corners = clients.image * clients.samples * clients.gap / (1 - clients.gap) ** 2
    most = 1.2 * max(corners.max(), best.price)
    prices = np.linspace(0, min(most, 6 * best.price) if best.price else most, PRICES)
    found = [incentive.equilibrium(clients, base, price, value) for price in prices]
    plotting.save(cost_figures.incentive(prices, found, best, before, budget), options.output)
    yield f"figure over the price: {options.output}"


def clients_of(path, files):
    """The `incentive.Clients` of a results file in a world, that of the YAML file if there is one in `files`: taking part costs a
    client the energy that the run took it, and an image that of its accelerator. Raises UserError."""
    run = read(path, [])
    worlds = worlds_for([run], files)
    [world] = worlds[0].values()
    if not run.trace.image_flops:
        raise UserError(
            f"{path}: nothing was generated, so that nobody knows what an image costs; "
            "give a run with method=genfl, sent or filled"
        )
    with reader.open_results(path) as file, reader.damage(path):
        held = workload.held(file, validate(reader.config_of(file), str(path)))
    [priced] = in_worlds([run], worlds)
    fixed = priced.bill.client_joules
    return incentive.clients_of(held, fixed, image_joules(world.hardware, run.trace.image_flops))


def table(best, clients, base, value, budget):
    """Lines of at most 80 columns: what follows from the server's price."""
    count, joined = len(clients.samples), best.joins.sum()
    tried = min(count, MOST_MISREPORTING)
    gains = incentive.misreporting(clients, base, value, budget, tried)
    gaining = (gains > 1e-9 * max(1, best.payments)).sum()
    rows = {
        "price of a whole repair": f"{best.price:.4g} J",
        "clients that take part": f"{joined} of {count}",
        "that generate": f"{(best.share > 0).sum()}, of which {(best.share >= 1).sum()} repair all of their gap",
        "images that they make": f"{best.images.sum():.0f}",
        "payments": f"{best.payments:.4g} J" + (f" of {budget:.4g} J" if np.isfinite(budget) else ""),
        "mean EMD that is left": f"{best.emd:.3f}",
        "welfare": f"{best.welfare:.4g} J",
        "least gain of who takes part": f"{best.utility[best.joins].min() if joined else 0:.4g} J",
        "most to gain by misreporting": f"{gains.max():.4g} J, {gaining} of {tried} clients gain",
    }
    for name, what in rows.items():
        yield f"  {name:<30}{what}"
