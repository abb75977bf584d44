"""One round on all ranks: who did what, and when."""

from typing import NamedTuple

import numpy as np
from matplotlib.patches import Patch

from genfl_mpi.results.reader import columns_of, damage, open_results
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.plotting import WIDTH, column, legend_below, styled

# Paul Tol's light colours, made for areas with dark text on them.
PHASES = {
    "write": "#B0B7C3",
    "train": "#77AADD",
    "generate": "#EE8866",
    "generate ahead": "#FFAABB",
    "augment": "#EEDD88",
    "send": "#AAAA00",
    "wait": "#E4E4E4",
    "reduce": "#44BB99",
    "aggregate": "#C3B1E1",
    "broadcast": "#BBCC33",
    "evaluate": "#99DDFF",
    "probe": "#D2B48C",
}
MOST_RANKS = 32  # of which bars are drawn


class Span(NamedTuple):
    """What a rank did, from a moment to another, in seconds since the round began; client: who trained, or None."""

    rank: int
    phase: str
    start: float
    end: float
    client: int | None = None


def spans(path, round):
    """The `Span`s of a round of a results file, and the number of the round; round: None for the last one.

    Measured are the clients' training and the waiting on every rank, and all phases of rank 0 but two. What it does first, write, is to
    bring the round before to the results file; what it does between reduction and broadcast, aggregate, with the other ranks waiting,
    is Eq. (1), with what the policies ask for it, and the round's rows. The collectives begin and end together on all ranks. Work
    that rank 0 did ahead while it waited is drawn as one piece. Raises UserError.
    """
    with open_results(path) as file, damage(path):
        rounds, clients = (
            columns_of(file, "rounds"),
            columns_of(file, "clients", ("round", "client", "start_seconds", "seconds", "rank")),
        )
        waits, probes = (
            columns_of(file, "ranks", ("round", "rank", "wait_seconds")),
            columns_of(file, "probes", ("round", "seconds")),
        )
    there = rounds["round"].tolist()
    if not there or round not in (None, *there):
        raise UserError(
            f"{path} has no round {round}; it has {len(there)}"
            if there
            else f"{path}: no round is finished yet"
        )
    round = there[-1] if round is None else round
    row = {name: values[there.index(round)] for name, values in rounds.items()}
    own = (clients["round"] == round) & (clients["rank"] >= 0)  # without those that nobody trained
    waits = waits["wait_seconds"][waits["round"] == round].tolist()  # one a rank, in their order
    found = [
        Span(int(rank), "train", start, start + seconds, int(client))
        for client, start, seconds, rank in zip(
            *(clients[name][own].tolist() for name in ("client", "start_seconds", "seconds", "rank"))
        )
    ]
    if np.isfinite(row["generate_start_seconds"]):
        made = _in_a_row(
            0,
            row["generate_start_seconds"],
            {name: row[f"{name}_seconds"] for name in ("generate", "augment", "send")},
        )
        found += made
        if row["send_seconds"]:  # then nobody trains before
            found += [Span(rank, "wait", 0.0, made[-1].end) for rank in range(1, len(waits))]
    busy = [span.start for span in found if span.rank == 0]
    if busy and round > there[0]:
        found += _in_a_row(0, 0.0, {"write": min(busy)})
    free = [max([0.0, *(span.end for span in found if span.rank == rank)]) for rank in range(len(waits))]
    ahead = row["generate_ahead_seconds"]
    found += _in_a_row(0, free[0], {"generate ahead": ahead})
    free[0] += ahead
    probe = float(probes["seconds"][probes["round"] == round].sum())
    together = {"broadcast": row["broadcast_seconds"], "evaluate": row["evaluate_seconds"], "probe": probe}
    arrived = max(start + wait for start, wait in zip(free, waits))
    reduced, announced = arrived + row["reduce_seconds"], row["round_seconds"] - sum(together.values())
    for rank, wait in enumerate(waits):
        found += _in_a_row(rank, free[rank], {"wait": wait}) + _in_a_row(
            rank, arrived, {"reduce": row["reduce_seconds"]}
        )
        found += _in_a_row(rank, reduced, {"wait" if rank else "aggregate": announced - reduced}) + _in_a_row(
            rank, announced, together
        )
    return sorted(found), round


def _in_a_row(rank, start, phases):
    found = []
    for phase, seconds in phases.items():
        if seconds > 0:
            found.append(Span(rank, phase, start, start + seconds))
        start += seconds
    return found


@styled
def timeline(path, round=None):
    """The `spans` of a round as bars, a row a rank, with the numbers of the clients where there is room. Raises UserError."""
    found, round = spans(path, round)
    ranks = min(MOST_RANKS, max(span.rank for span in found) + 1)
    figure, [[axes]] = column(1, 1)
    end = max(span.end for span in found)
    for span in found:
        if span.rank < ranks:
            lasted = span.end - span.start
            axes.barh(
                span.rank,
                lasted,
                left=span.start,
                height=0.8,
                color=PHASES[span.phase],
                edgecolor="white",
                linewidth=0.3,
            )
            if span.client is not None and lasted / end * WIDTH > 0.07 * len(str(span.client)):
                axes.text(
                    (span.start + span.end) / 2,
                    span.rank,
                    span.client,
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="black",
                )
    seen = {span.phase for span in found}
    handles = [Patch(color=PHASES[phase], label=phase) for phase in PHASES if phase in seen]
    lines = legend_below(figure, handles, [handle.get_label() for handle in handles])
    figure.set_figheight(0.75 + 0.26 * ranks + 0.15 * lines)
    axes.set(
        xlabel="seconds since the round began",
        ylabel="rank",
        title=f"round {round}",
        yticks=range(ranks),
        xlim=(0, end),
        ylim=(ranks - 0.5, -0.5),
    )
    return figure
