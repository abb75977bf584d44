"""Draw curves of many runs over the rounds: mean and standard deviation over seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from genfl_mpi.analysis.summary import groups
from genfl_mpi.util.plotting import COLOURS, LINE_STYLES, column, label_classes, legend_below, styled, tinted

# A legend with more entries, or longer ones (characters), goes below the axes, where it covers no curves.
MAX_INSIDE_ENTRIES, MAX_INSIDE_LENGTH = 5, 22


def accuracy(paths: Sequence[Path]) -> Figure:
    """Draw test accuracy against rounds. Raises UserError.

    Mean over seeds, with a band of one standard deviation; one panel per data set and alpha. Runs with fewer
    rounds than others of their group are separate thin lines.
    """
    return _over_rounds(paths, "accuracy", "test accuracy (%)", 100)


def loss(paths: Sequence[Path]) -> Figure:
    """Draw test loss against rounds, like `accuracy`. Raises UserError."""
    return _over_rounds(paths, "loss", "test loss (nat)", 1)


@styled
def classes(paths: Sequence[Path]) -> Figure:
    """Draw test accuracy of each class, mean over seeds: one panel per method. Raises UserError."""
    found, _ = groups(paths)
    titles = [
        textwrap.fill(", ".join(filter(None, (group.method, group.panel, group.settings))), 36)
        for group in found
    ]
    lines = 1 + max(title.count("\n") for title in titles)
    figure, all_axes = column(
        len(found),
        0.42 + 0.13 * lines + min(2.4, 0.12 * max(len(group.classes) for group in found)),
        sharex=True,
    )
    for group, title, [axes] in zip(found, titles, all_axes):
        names = group.classes
        mean = 100 * group.column("accuracy_per_class").mean(0)
        image = axes.imshow(
            mean.T,
            aspect="auto",
            interpolation="nearest",
            cmap="cividis",
            vmin=0,
            vmax=100,
            extent=(0.5, len(mean) + 0.5, len(names) - 0.5, -0.5),
        )
        axes.set(title=title, ylabel="class")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_classes(axes, names)
    axes.set(xlabel="round")
    figure.colorbar(image, ax=all_axes, label="test accuracy (%)")
    return figure


@styled
def _over_rounds(paths: Sequence[Path], name: str, label: str, unit: float) -> Figure:
    found, common = groups(paths)
    panels = list(dict.fromkeys(group.panel for group in found))
    settings = list(dict.fromkeys(group.settings for group in found))
    figure, all_axes = column(len(panels), 2.4, sharex=True)
    for panel, [axes] in zip(panels, all_axes):
        for group in (group for group in found if group.panel == panel):
            curves = unit * group.column(name)
            kind, mean, x = settings.index(group.settings), curves.mean(0), np.arange(1, curves.shape[1] + 1)
            colour, style = tinted(COLOURS[group.method], kind), LINE_STYLES[kind % len(LINE_STYLES)]
            axes.plot(
                x,
                mean,
                style,
                color=colour,
                label=f"{group.method}, {group.settings}" if group.settings else group.method,
            )
            for curve in group.shorter_runs(name):
                axes.plot(np.arange(1, len(curve) + 1), unit * curve, style, color=colour, linewidth=0.5)
            if len(curves) > 1:
                deviation = curves.std(0, ddof=1)
                axes.fill_between(
                    x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0
                )
        axes.set(ylabel=label, title=panel or _title(common))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid()
    axes.set(xlabel="round")
    handles = {name: handle for [axes] in all_axes for handle, name in zip(*axes.get_legend_handles_labels())}
    if len(handles) > MAX_INSIDE_ENTRIES or max(map(len, handles)) > MAX_INSIDE_LENGTH:
        figure.set_figheight(figure.get_figheight() + 0.15 * legend_below(figure, handles.values(), handles))
    else:
        all_axes[0, 0].legend(handles.values(), handles, frameon=False)
    if panels != [""]:
        figure.suptitle(_title(common))
    return figure


def _title(common: dict[str, Any]) -> str:
    """Name data set, clients and partition, as far as all runs share them."""
    parts = [str(common[key]) for key in ("data.name",) if key in common]
    parts += [f"{common['clients']} clients"] if "clients" in common else []
    if common.get("partition.scheme") == "dirichlet" and "partition.alpha" in common:
        parts.append(f"Dirichlet({common['partition.alpha']:g})")
    return ", ".join(parts)
