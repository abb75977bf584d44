"""Draw how clients differ, round by round: data of the cohorts, and results of the probes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from genfl_mpi.analysis.summary import groups
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.plotting import (
    COLOURS,
    LINE_STYLES,
    Curve,
    column,
    draw_curves,
    legend_below,
    mark_integers,
    styled,
    tinted,
)


def _mean_over_clients(run: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return probed rounds, and means of a column of /probed_clients over clients with a value, or NaN."""
    rounds, values = run["probed_clients/round"], run[f"probed_clients/{name}"]
    probed, known = np.unique(rounds), np.isfinite(values)
    return probed, np.array(
        [
            values[known & (rounds == round)].mean() if known[rounds == round].any() else np.nan
            for round in probed
        ]
    )


PANELS = {
    "EMD of the cohort": lambda run: (run["round"], run["cohort_emd"]),
    "weight divergence": lambda run: (run["probes/round"], run["probes/weight_divergence"]),
    "gradient difference": lambda run: _mean_over_clients(run, "gradient_difference"),
    "local error (nat)": lambda run: _mean_over_clients(run, "local_error"),
}


@styled
def heterogeneity(paths: Sequence[Path]) -> Figure:
    """Draw four panels over the rounds: one line per method, mean over seeds.

    The EMD of the cohort's pooled training labels; and from the probes weight divergence, and the mean
    gradient difference and local error of the probed clients. Raises UserError, also for runs without probes.
    """
    found, _ = groups(paths, ("probes", "probed_clients"))
    if not any(len(run["probes/round"]) for group in found for run in group.runs):
        raise UserError(
            f"{paths[0]}: has no probe data; make the run with probes.every=1, which changes no other result"
        )
    kinds = list(dict.fromkeys((group.panel, group.settings) for group in found))
    figure, grid = column(len(PANELS), 1.35, sharex=True)
    for [axes], (label, read) in zip(grid, PANELS.items()):
        drawn = []
        for group in found:
            runs = [read(run) for run in group.runs if len(run["probes/round"])]
            if runs := [(rounds, values) for rounds, values in runs if np.isfinite(values).any()]:
                # The mean is over the seeds that were probed in the same rounds.
                rounds = max((rounds for rounds, _ in runs), key=len)
                mean = np.mean([values for others, values in runs if np.array_equal(others, rounds)], axis=0)
                kind = kinds.index((group.panel, group.settings))
                drawn.append(
                    Curve(
                        ", ".join(filter(None, (group.method, group.panel, group.settings))),
                        rounds,
                        mean,
                        tinted(COLOURS[group.method], kind),
                        LINE_STYLES[kind % len(LINE_STYLES)],
                        "." if len(rounds) < 30 else None,
                    )
                )
        draw_curves(figure, axes, drawn)
        if not axes.lines:
            axes.text(
                0.5,
                0.5,
                "no values in these runs",
                size="small",
                ha="center",
                va="center",
                transform=axes.transAxes,
            )
        top = axes.dataLim.y1  # -inf if nothing is drawn
        axes.set(ylabel=label, ylim=(0, 1.05 * top if top > 0 else 1))
        axes.grid()
    axes.set(xlabel="round")
    mark_integers(axes.xaxis)
    figure.align_ylabels()
    handles = {name: handle for [axes] in grid for handle, name in zip(*axes.get_legend_handles_labels())}
    legend_below(figure, handles.values(), handles)
    return figure
