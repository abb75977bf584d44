"""Draw one round on all ranks: which rank did what, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from genfl_mpi.results.reader import open_results, read_columns, report_damage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.plotting import WIDTH, column, legend_below, styled

# Paul Tol's light colours, for areas behind dark text.
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
MAX_RANKS = 32  # drawn


class Span(NamedTuple):
    """An activity of a rank; start, end: seconds since the round began; client: the trained one, or None."""

    rank: int
    phase: str
    start: float
    end: float
    client: int | None = None


def spans(path: str | Path, round: int | None) -> tuple[list[Span], int]:
    """Return the `Span`s of a round, None for the last one, and its number. Raises UserError.

    Training, waiting and shared generation are measured on every rank, and all phases of rank 0 but two.
    First it writes the previous round to the results file (write). Between reduction and broadcast, while the
    other ranks wait, it applies Eq. (1), with what the policies need for it, and prepares the round's rows
    (aggregate). Collectives start and end together on all ranks. Images that rank 0 generates ahead while it
    waits are drawn as one piece.
    """
    with open_results(path) as file, report_damage(path):
        rounds, clients = (
            read_columns(file, "rounds"),
            read_columns(file, "clients", ("round", "client", "start_seconds", "seconds", "rank")),
        )
        waits, probes = (
            read_columns(file, "ranks", ("round", "rank", "wait_seconds", "generating_seconds")),
            read_columns(file, "probes", ("round", "seconds")),
        )
    numbers = rounds["round"].tolist()
    if not numbers or round not in (None, *numbers):
        raise UserError(
            f"{path} has no round {round}; give one of 1 to {len(numbers)}"
            if numbers
            else f"{path}: no round is finished yet; try again later"
        )
    round = numbers[-1] if round is None else round
    row = {name: values[numbers.index(round)] for name, values in rounds.items()}
    trained = (clients["round"] == round) & (clients["rank"] >= 0)  # without clients that no rank trained
    made_by = waits["generating_seconds"][waits["round"] == round].tolist()  # in the order of ranks
    waits = waits["wait_seconds"][waits["round"] == round].tolist()
    found = [
        Span(int(rank), "train", start, start + seconds, int(client))
        for client, start, seconds, rank in zip(
            *(clients[name][trained].tolist() for name in ("client", "start_seconds", "seconds", "rank"))
        )
    ]
    if np.isfinite(row["generate_start_seconds"]):
        made = _consecutive(
            0,
            row["generate_start_seconds"],
            {name: row[f"{name}_seconds"] for name in ("generate", "augment", "send")},
        )
        found += made
        found += _shared(made_by, row["generate_start_seconds"])
        if row["send_seconds"]:  # training waits for the images
            found += [Span(rank, "wait", 0.0, made[-1].end) for rank in range(1, len(waits))]
    busy = [span.start for span in found if span.rank == 0]
    if busy and round > numbers[0]:
        found += _consecutive(0, 0.0, {"write": min(busy)})
    free = [max([0.0, *(span.end for span in found if span.rank == rank)]) for rank in range(len(waits))]
    ahead = row["generate_ahead_seconds"]
    found += _consecutive(0, free[0], {"generate ahead": ahead})
    free[0] += ahead
    probe = float(probes["seconds"][probes["round"] == round].sum())
    together = {"broadcast": row["broadcast_seconds"], "evaluate": row["evaluate_seconds"], "probe": probe}
    arrived = max(start + wait for start, wait in zip(free, waits))
    reduced, announced = arrived + row["reduce_seconds"], row["round_seconds"] - sum(together.values())
    for rank, wait in enumerate(waits):
        found += _consecutive(rank, free[rank], {"wait": wait}) + _consecutive(
            rank, arrived, {"reduce": row["reduce_seconds"]}
        )
        found += _consecutive(
            rank, reduced, {"wait" if rank else "aggregate": announced - reduced}
        ) + _consecutive(rank, announced, together)
    return sorted(found), round


def _shared(seconds: Sequence[float], start: float) -> list[Span]:
    """Return the `Span`s of the other ranks in a shared generation, which all ranks leave together.

    seconds: of each rank, that of rank 0 included; 0 for all, or NaN, if rank 0 generated alone.
    """
    longest = float(np.nan_to_num(seconds).max(initial=0.0))
    found = []
    for rank, own in enumerate(seconds):
        if rank and longest:
            found += _consecutive(rank, start, {"generate": own, "wait": longest - own})
    return found


def _consecutive(rank: int, start: float, phases: Mapping[str, float]) -> list[Span]:
    """Return the `Span`s of phases, {phase: seconds}, that follow one another from `start` on."""
    found = []
    for phase, seconds in phases.items():
        if seconds > 0:
            found.append(Span(rank, phase, start, start + seconds))
        start += seconds
    return found


@styled
def timeline(path: str | Path, round: int | None = None) -> Figure:
    """Draw the `spans` of a round, one row per rank, with client numbers where they fit. Raises UserError."""
    found, round = spans(path, round)
    ranks = min(MAX_RANKS, max(span.rank for span in found) + 1)
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
    drawn = {span.phase for span in found}
    phases = [phase for phase in PHASES if phase in drawn]
    figure.set_figheight(0.75 + 0.26 * ranks)
    legend_below(figure, [Patch(color=PHASES[phase], label=phase) for phase in phases], phases)
    axes.set(
        xlabel="seconds since the round began",
        ylabel="rank",
        title=f"round {round}",
        yticks=range(ranks),
        xlim=(0, end),
        ylim=(ranks - 0.5, -0.5),
    )
    return figure
