"""Draw how runs scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from genfl_mpi.util.plotting import WIDTH, styled
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


PART_COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#56B4E9", "#999999")


@styled
def draw(studies: Sequence[tuple[str, Sequence[tuple[Any, ...]]]]) -> Figure:
    """Draw two panels per study: (title, rows of `scaling.over_ranks` or `.over_clients`)."""
    figure = Figure((2 * WIDTH, 0.4 + 2.6 * len(studies)), layout="constrained")  # both columns of a page
    for axes, (title, rows) in zip(figure.subplots(len(studies), 2, squeeze=False), studies):
        (_draw_ranks if isinstance(rows[0][-1], dict) else _draw_clients)(axes, rows)
        axes[0].set_title(title, loc="left")
    return figure


def _draw_ranks(axes: Sequence[Axes], rows: Sequence[tuple[Any, ...]]) -> None:
    """Draw speed-up against ranks, measured, predicted and ideal; and the breakdown of a round."""
    speed, breakdown = axes
    ranks, first = [row[0] for row in rows], rows[0][1]
    speed.plot(ranks, [first / row[1] for row in rows], "o-", color="#0072B2", label="measured")
    speed.plot(ranks, [first / row[2] for row in rows], "x--", color="#D55E00", label="predicted")
    speed.plot(ranks, [one / ranks[0] for one in ranks], ":", color="black", linewidth=0.8, label="ideal")
    speed.set(xlabel="ranks", ylabel=f"speed-up over {counted(ranks[0], 'rank')}", xscale="log", yscale="log")
    _set_ticks(speed.xaxis, ranks)
    _set_ticks(speed.yaxis, [one / ranks[0] for one in ranks])
    speed.grid()
    speed.legend(frameon=False)
    bottom = [0.0] * len(rows)
    for part, colour in zip(rows[0][3], PART_COLOURS):
        shares = [row[3][part] * row[1] / 100 for row in rows]
        breakdown.bar(range(len(rows)), shares, bottom=bottom, color=colour, label=part)
        bottom = [one + two for one, two in zip(bottom, shares)]
    breakdown.set_xticks(range(len(rows)), ranks)
    breakdown.set(xlabel="ranks", ylabel="seconds per round, mean rank")
    breakdown.legend(frameon=False, ncols=2)


def _draw_clients(axes: Sequence[Axes], rows: Sequence[tuple[Any, ...]]) -> None:
    """Draw seconds per round and accuracy against clients: one curve per cohort size and number of ranks."""
    several = len({row[2] for row in rows}) > 1
    for cohort, ranks in sorted({row[1:3] for row in rows}):
        selected = [row for row in rows if row[1:3] == (cohort, ranks)]
        label = f"cohort {cohort}" + (f", {counted(ranks, 'rank')}" if several else "")
        for panel, column in zip(axes, (3, 4)):
            panel.plot([row[0] for row in selected], [row[column] for row in selected], "o-", label=label)
    for panel, name in zip(axes, ("seconds per round", "final test accuracy (%)")):
        panel.set(xlabel="clients", ylabel=name, xscale="log")
        _set_ticks(panel.xaxis, sorted({row[0] for row in rows}))
        panel.grid()
    axes[0].set_ylim(bottom=0)
    axes[1].legend(frameon=False)


def _set_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Set the ticks of a logarithmic axis to `values`, as plain numbers."""
    axis.set_ticks(values)
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())
