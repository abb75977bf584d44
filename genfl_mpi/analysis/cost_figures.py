"""Draw what runs cost: measured, and in simulated worlds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from genfl_mpi.analysis.summary import Group, groups
from genfl_mpi.util.plotting import (
    COLOURS,
    HATCHES,
    LINE_STYLES,
    WIDTH,
    Curve,
    column,
    draw_curves,
    legend_below,
    set_log_ticks,
    styled,
    tinted,
)
from genfl_mpi.util.text import scale

if TYPE_CHECKING:
    from genfl_mpi.edge.incentive import Equilibrium

PLACEMENT_STYLES = {
    "P0": ("#999999", ":"),
    "P1": ("#009E73", "-"),
    "P2": ("#0072B2", "-"),
    "P3": ("#D55E00", "-"),
    "P4": ("#E69F00", "--"),
    "P5": ("#CC79A7", "-."),
}
PHASES = (
    "round",
    "train",
    "generate",
    "generate_ahead",
    "bank",
    "augment",
    "send",
    "wait",
    "reduce",
    "broadcast",
    "evaluate",
)
MESSAGES = ("broadcast", "reduce")
MIN_SHARE = 0.005  # of a round, for a phase to be drawn


@styled
def measured(paths: Sequence[Path]) -> Figure:
    """Draw the seconds of each phase of a round, and the bytes of its two messages. Raises UserError.

    Means over rounds, with the standard deviation over seeds; one bar per method. Generating images does not
    include reading them from the bank.
    """
    found, _ = groups(paths)
    kinds = list(dict.fromkeys((group.panel, group.settings) for group in found))
    phases = present_phases(found)
    figure, [[above], [below]] = column(2, 1.0, height_ratios=(len(phases), len(MESSAGES) + 0.5))
    for axes, names, unit, label in (
        (above, phases, "seconds", "seconds per round"),
        (below, MESSAGES, "bytes", "message size"),
    ):
        thick = 0.8 / len(found)
        for i, group in enumerate(found):
            per_run = np.array([_column(group, f"{name}_{unit}").mean(1) for name in names])
            spread = per_run.std(1, ddof=1) if per_run.shape[1] > 1 else None
            kind = kinds.index((group.panel, group.settings))
            axes.barh(
                np.arange(len(names)) + (i + 0.5) * thick - 0.4,
                per_run.mean(1),
                thick,
                xerr=spread,
                color=tinted(COLOURS[group.method], kind),
                hatch=HATCHES[kind % len(HATCHES)],
                edgecolor=rcParams["figure.facecolor"],
                linewidth=0,
                error_kw={"linewidth": 0.6, "ecolor": rcParams["text.color"]},
                label=", ".join(filter(None, (group.method, group.panel, group.settings))),
            )
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.set(xlabel=label, ylim=(len(names) - 0.5, -0.5), xlim=(0, None))
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    below.xaxis.set_major_formatter(EngFormatter("B"))
    below.locator_params(axis="x", nbins=5)
    figure.set_figheight(1.0 + 0.05 * (len(phases) + len(MESSAGES)) * (1 + len(found)))
    legend_below(figure, *above.get_legend_handles_labels())
    return figure


def present_phases(found: Sequence[Group]) -> list[str]:
    """Return the PHASES that take at least MIN_SHARE of the rounds in one of the groups."""
    return [
        name
        for name in PHASES
        if any(
            _column(group, f"{name}_seconds").mean() >= MIN_SHARE * group.column("round_seconds").mean()
            for group in found
        )
    ]


def _column(group: Group, name: str) -> np.ndarray:
    """Return a measured column, float64 (runs, rounds). The bank's seconds count as 0 if not recorded."""
    bank = np.nan_to_num(group.column("bank_seconds"))
    if name == "bank_seconds":
        return bank
    return group.column(name) - (bank if name == "generate_seconds" else 0.0)


@styled
def accuracy(
    runs: Sequence[tuple[str, str, str, np.ndarray, dict[str, np.ndarray]]], measures: dict[str, str]
) -> Figure:
    """Draw test accuracy against cumulative costs: a panel per measure, and a column per world.

    runs: tuples (method, settings, world, accuracy (rounds,), {measure: cumulative cost (rounds,)}).
    measures: units by name, without a prefix, which the figure chooses.
    """
    worlds, kinds = (list(dict.fromkeys(run[place] for run in runs)) for place in (2, 1))
    rows, columns = (len(measures), len(worlds)) if len(worlds) > 1 else (-(-len(measures) // 2), 2)
    figure = Figure((WIDTH * (1 if columns < 3 else 2), 1.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    panels = [(measure, world) for measure in measures for world in worlds]
    scales = {
        measure: scale(max(run[4][measure].max(initial=0.0) for run in runs), unit)
        for measure, unit in measures.items()
    }
    for axes, (measure, world) in zip(grid.flat, panels):
        in_world = [run for run in runs if run[2] == world]
        paid = [run for run in in_world if run[4][measure].any()]
        # A cost of zero has no place on a logarithmic axis.
        free = dict.fromkeys(run[0] for run in in_world if not run[4][measure].any())
        world_title = f"world {world}" if len(worlds) > 1 and measure == panels[0][0] else ""
        axes.set_title(
            "\n".join(
                filter(None, (world_title, f"{', '.join(free)}: 0 {scales[measure][1]}" if free else ""))
            )
        )
        draw_curves(
            figure,
            axes,
            [
                Curve(
                    ", ".join(filter(None, (method, settings))),
                    spent[measure][np.isfinite(reached)] / scales[measure][0],
                    100 * reached[np.isfinite(reached)],
                    tinted(COLOURS[method], kinds.index(settings)),
                    LINE_STYLES[kinds.index(settings) % len(LINE_STYLES)],
                )
                for method, settings, _, reached, spent in paid
            ],
        )
        axes.set(xlabel=_axis_label(measure, scales[measure][1]), xscale="log")
        set_log_ticks(axes.xaxis)
        axes.grid()
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    handles = {name: handle for axes in grid.flat for handle, name in zip(*axes.get_legend_handles_labels())}
    legend_below(figure, handles.values(), handles)
    return figure


@styled
def placements(
    costs: dict[str, dict[str, dict[str, np.ndarray]]],
    factors: np.ndarray,
    measures: dict[str, str],
    title: str,
) -> Figure:
    """Draw total costs of the placements of generation over number and size of images, one row each.

    costs: {axis: {placement: {measure: float64 (factors,)}}}. factors: multiples of the run's. measures:
    units by name, without a prefix, which the figure chooses.
    """
    figure = Figure((2 * WIDTH, 0.5 + 2.1 * len(costs)), layout="constrained")  # both columns of a page
    grid = figure.subplots(len(costs), len(measures), squeeze=False)
    for row, (axis, found) in zip(grid, costs.items()):
        for axes, (measure, base) in zip(row, measures.items()):
            middle = np.median([values[measure] for values in found.values()])
            factor, unit = scale(float(middle), base)
            for placement, values in found.items():
                colour, style = PLACEMENT_STYLES[placement]
                axes.plot(factors, values[measure] / factor, style, color=colour, label=placement)
            axes.axvline(1, color="black", linewidth=0.6)
            axes.set(
                xscale="log",
                yscale="log",
                xlabel=f"{axis} of images\n(multiple of the run's)",
                title=_axis_label(measure, unit),
            )
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid()
    figure.suptitle(title)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


@styled
def incentive(
    prices: np.ndarray, found: Sequence[Equilibrium], best: Equilibrium, before: float, budget: float
) -> Figure:
    """Draw participation, the server's objective, gains and welfare over the price for filling the gap.

    prices: float64 (P,), J. found: an `Equilibrium` for each. best: the one at the server's price. before:
    mean EMD without any generation. budget: J, or infinite.
    """
    figure = Figure((2 * WIDTH, 3.2), layout="constrained")  # both columns of a page
    left, middle, right = figure.subplots(1, 3)
    left.plot(prices, [one.joins.mean() for one in found], linewidth=4, alpha=0.5, label="participate")
    left.plot(prices, [(one.share > 0).mean() for one in found], label="generate")
    left.plot(prices, [one.share.mean() for one in found], label="mean share of gap filled")
    left.plot(prices, [one.emd / before for one in found], "k--", label="remaining EMD / initial EMD")
    left.set(ylabel="share", title="clients' response")
    middle.plot(prices, [one.objective for one in found], "k", label="objective")
    middle.plot(prices, [one.payments for one in found], label="payments")
    middle.plot(prices, [one.objective - one.payments for one in found], label="value of remaining EMD")
    middle.plot(best.price, best.objective, "ko")
    if budget < max(one.payments for one in found):
        middle.axhline(budget, color="grey", linewidth=0.8, label="budget")
    middle.set(ylabel="J", title="server's objective")
    right.plot(prices, [one.welfare for one in found], "k", label="welfare")
    right.plot(prices, [one.utility.sum() for one in found], label="sum of clients' gains")
    right.plot(prices, [one.utility.max() for one in found], label="largest gain")
    right.set(ylabel="J", title="welfare and gains")
    for axes in (left, middle, right):
        axes.axvline(best.price, color="grey", linestyle=":", linewidth=1)
        axes.set(xlabel="price for filling the gap (J)")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.05, -0.24))
        axes.grid()
    return figure


def _axis_label(measure: str, unit: str) -> str:
    return measure if measure == "seconds" else f"{measure} ({unit})"
