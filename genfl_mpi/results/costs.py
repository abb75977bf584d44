"""Figures of what runs cost in simulated worlds."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter  # noqa: E402

from genfl_mpi.results.plots import COLOURS, LINE_STYLES, save  # noqa: E402

PLACEMENT_STYLES = {"P0": ("#999999", ":"), "P1": ("#009E73", "-"), "P2": ("#0072B2", "-"), "P3": ("#D55E00", "-"),
                    "P4": ("#E69F00", "--"), "P5": ("#CC79A7", "-.")}


def accuracy(runs, measures, out):
    """Test accuracy against what has been spent, a panel for each measure, into the image file `out`.

    runs: tuples (method, world, accuracy (rounds,), {measure: spent (rounds,)}); measures: their units by name.
    Raises UserError.
    """
    worlds = list(dict.fromkeys(world for _, world, _, _ in runs))
    figure, all_axes = plt.subplots(1, len(measures), figsize=(3.1 * len(measures), 3.6), layout="constrained", sharey=True)
    named = set()
    for axes, (measure, unit) in zip(all_axes, measures.items()):
        for method, world, reached, spent in runs:
            label = ", ".join([method] + [f"world {world}"] * (len(worlds) > 1))
            style = LINE_STYLES[worlds.index(world) % len(LINE_STYLES)]
            axes.plot(spent[measure], 100 * reached, style, color=COLOURS[method], linewidth=1.2,
                      label=None if (measure, label) in named else label)
            named.add((measure, label))
        axes.set(xlabel=_axis(measure, unit), xscale="log")
        axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1, 0.4)))  # within a decade there is no other label
        axes.tick_params(axis="x", which="minor", labelsize="x-small", rotation=30)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("test accuracy (%)")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    save(figure, out)


def placements(costs, factors, measures, title, out):
    """Total costs of the placements of AIGC over the number and the size of images, a row for each, into the image file `out`.

    costs: {axis: {placement: {measure: float64 (factors,)}}}; factors: times the run's; measures: their units by name.
    Raises UserError.
    """
    size = 3.1 * len(measures), 0.6 + 2.6 * len(costs)
    figure, grid = plt.subplots(len(costs), len(measures), figsize=size, layout="constrained")
    for row, (axis, found) in zip(grid, costs.items()):
        for axes, (measure, unit) in zip(row, measures.items()):
            for placement, values in found.items():
                colour, style = PLACEMENT_STYLES[placement]
                axes.plot(factors, values[measure], style, color=colour, label=placement)
            axes.axvline(1, color="black", linewidth=0.6)
            axes.set(xscale="log", yscale="log", xlabel=f"{axis} of the images, times the run's", title=_axis(measure, unit))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save(figure, out)


def incentive(prices, found, best, before, budget, out):
    """What follows from the price of a whole repair into the image file `out`: who generates, the server's objective, and the
    clients' gains and the welfare, with the server's price. Raises UserError.

    prices: float64 (P,), J; found: an `Equilibrium` for each; best: that of the server's price; before: mean EMD without any
    repair; budget: in J, or infinite.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    left.plot(prices, [one.joins.mean() for one in found], linewidth=4, alpha=0.5, label="take part")
    left.plot(prices, [(one.share > 0).mean() for one in found], label="generate")
    left.plot(prices, [one.share.mean() for one in found], label="mean share of the gap repaired")
    left.plot(prices, [one.emd / before for one in found], "k--", label="EMD left, of that before")
    left.set(ylabel="share", title="what the clients do")
    middle.plot(prices, [one.objective for one in found], "k", label="objective")
    middle.plot(prices, [one.payments for one in found], label="payments")
    middle.plot(prices, [one.objective - one.payments for one in found], label="value of the EMD left")
    middle.plot(best.price, best.objective, "ko")
    if budget < max(one.payments for one in found):
        middle.axhline(budget, color="grey", linewidth=0.8, label="budget")
    middle.set(ylabel="J", title="what the server weighs")
    right.plot(prices, [one.welfare for one in found], "k", label="welfare")
    right.plot(prices, [one.utility.sum() for one in found], label="all clients' gains")
    right.plot(prices, [one.utility.max() for one in found], label="the largest gain")
    right.set(ylabel="J", title="who gains")
    for axes in (left, middle, right):
        axes.axvline(best.price, color="grey", linestyle=":", linewidth=1)
        axes.set(xlabel="price of a whole repair (J)")
        axes.legend(frameon=False, fontsize="small")
        axes.grid(alpha=0.3)
    save(figure, out)


def _axis(measure, unit):
    return measure if measure == "seconds" else f"{measure} ({unit})"
