"""Draw the clients' local accuracies with personal models, from results files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from genfl_mpi.config.composition import METHOD_TITLES
from genfl_mpi.results.reader import open_results, read_columns, read_config, report_damage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.plotting import Curve, column, draw_curves, legend_below, styled

WORST = 0.1  # share of the clients in the mean of the worst


def last_evaluation(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Return (method, columns of /personal) of a run's last evaluation, of clients with test samples.

    Raises UserError if there is none.
    """
    with open_results(path) as file, report_damage(path):
        config, table = read_config(file), read_columns(file, "personal")
    if not len(table["round"]):
        raise UserError(
            f"{path}: has no evaluation at the clients; make the run with personal.method=global or another "
            "method, and personal.every at most its rounds"
        )
    chosen = (table["round"] == table["round"].max()) & (table["samples"] > 0)
    name = f"{METHOD_TITLES[config['method']]}, {config['personal']['method']}"
    return name, {name: values[chosen] for name, values in table.items()}


@styled
def personal(paths: Sequence[Path]) -> Figure:
    """Draw two panels over the share of clients: local accuracy, and its gain over the global model.

    Clients are sorted in each; runs of the same methods are pooled. The legend has the mean and the mean of
    the worst tenth. Raises UserError.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    for path in paths:
        name, table = last_evaluation(path)
        found.setdefault(name, []).append(table)
    figure, grid = column(2, 1.6, sharex=True)
    drawn: list[list[Curve]] = [[], []]
    for number, (name, tables) in enumerate(found.items()):
        own, glob = (
            100 * np.concatenate([table[which] for table in tables])
            for which in ("accuracy", "global_accuracy")
        )
        worst = np.sort(own)[: max(1, round(WORST * len(own)))].mean()
        label = f"{name}: {own.mean():.1f}, worst tenth {worst:.1f}"
        share = 100 * (np.arange(len(own)) + 0.5) / len(own)
        for curves, values in zip(drawn, (own, own - glob)):
            curves.append(Curve(label, share, np.sort(values), f"C{number % 10}"))
    for [axes], curves, label in zip(grid, drawn, ("local accuracy (%)", "gain over global (points)")):
        draw_curves(figure, axes, curves)
        axes.set_ylabel(label)
        axes.grid()
    axes.set_xlabel("share of clients (%)")
    figure.align_ylabels()
    handles = {name: handle for [axes] in grid for handle, name in zip(*axes.get_legend_handles_labels())}
    legend_below(figure, handles.values(), handles, columns=1)
    return figure
