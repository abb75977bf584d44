"""Draw accuracy against the epsilon of differential privacy, from results files alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from genfl_mpi.analysis.claims import LAST_ROUNDS
from genfl_mpi.analysis.summary import mean_of_last
from genfl_mpi.config.composition import METHOD_TITLES
from genfl_mpi.results.reader import open_results, read_columns, read_config, report_damage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.plotting import COLOURS, column, legend_below, styled


def outcome(path: Path) -> tuple[str, float, float]:
    """Return (method, epsilon, accuracy) of a run: the mean of its last evaluated rounds. Raises UserError.

    epsilon: that of all rounds, with the labels; infinite without differential privacy, and 0 if the run uses
    nothing of the clients.
    """
    with open_results(path) as file, report_damage(path):
        config = read_config(file)
        columns = read_columns(file, "rounds", ["accuracy", "epsilon_with_labels", "clients_trained"])
    accuracy = mean_of_last(path, columns["accuracy"], LAST_ROUNDS)
    epsilon = float(columns["epsilon_with_labels"][-1])
    if np.isnan(epsilon):
        is_free = not columns["clients_trained"].any() and config["label_sharing"]["refusal_rate"] == 1
        epsilon = 0.0 if is_free else np.inf
    return METHOD_TITLES[config["method"]], epsilon, 100 * accuracy


@styled
def privacy(paths: Sequence[Path]) -> Figure:
    """Draw the accuracy of each method against epsilon: means and deviations over runs with the same.

    Methods that use nothing of the clients, and runs without privacy, are horizontal lines. Raises UserError,
    also if no run has a finite epsilon.
    """
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        method, epsilon, accuracy = outcome(path)
        found[method][float(f"{epsilon:.3g}")].append(accuracy)
    finite = sorted({epsilon for values in found.values() for epsilon in values if 0 < epsilon < np.inf})
    if not finite:
        raise UserError(
            f"{paths[0]}: has no differential privacy; give runs with privacy.clip and an epsilon"
        )
    figure, [[axes]] = column(1, 2.2)
    for method in (title for title in METHOD_TITLES.values() if title in found):
        colour = COLOURS[method]
        points = {epsilon: found[method][epsilon] for epsilon in finite if epsilon in found[method]}
        if points:
            means = [np.mean(values) for values in points.values()]
            spread = [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in points.values()]
            axes.errorbar(
                list(points), means, spread, color=colour, marker="o", markersize=3, capsize=2, label=method
            )
        for epsilon, style, note in ((0.0, ":", "nothing of the clients"), (np.inf, "--", "not private")):
            if values := found[method].get(epsilon):
                axes.axhline(float(np.mean(values)), color=colour, ls=style, label=f"{method}, {note}")
    axes.set_xscale("log")
    axes.set_xticks(finite, [f"{epsilon:.2g}" for epsilon in finite])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("epsilon of a client")
    axes.set_ylabel("test accuracy (%)")
    axes.grid()
    handles, labels = axes.get_legend_handles_labels()
    legend_below(figure, handles, labels, columns=2)
    return figure
