"""Draw curves of many runs over the rounds: mean and standard deviation over seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from genfl_mpi.analysis.summary import Group, data_name, groups
from genfl_mpi.util.plotting import (
    COLOURS,
    LINE_STYLES,
    MAX_CLASSES,
    MAX_ROUND_TICKS,
    Curve,
    draw_curves,
    label_classes,
    legend_below,
    panels,
    round_ticks,
    styled,
    tinted,
)

# A legend with more entries, or longer ones (characters), goes below the axes, where it covers no curves.
MAX_INSIDE_ENTRIES, MAX_INSIDE_LENGTH = 5, 22
MAX_CLASS_PANELS = 24


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
    """Draw test accuracy of each class, mean over seeds: one panel per group of runs. Raises UserError."""
    found, _ = groups(paths)
    shown = found[:MAX_CLASS_PANELS]
    titles = [
        textwrap.fill(", ".join(filter(None, (group.method, group.panel, group.settings))), 36)
        for group in shown
    ]
    lines = 1 + max(title.count("\n") for title in titles)
    names_height = min(2.4, 0.12 * max(len(group.classes) for group in shown))
    figure, all_axes = panels(len(shown), 0.42 + 0.13 * lines + names_height, "round", "class")
    rows = len({axes.get_position().y0 for axes in all_axes})
    height = figure.get_figheight() / rows - 0.42 - 0.13 * lines
    for group, title, axes in zip(shown, titles, all_axes):
        mean = 100 * until_next_evaluation(group)
        image = axes.imshow(
            mean.T,
            aspect="auto",
            interpolation="nearest",
            cmap="cividis",
            vmin=0,
            vmax=100,
            extent=(0.5, len(mean) + 0.5, len(group.classes) - 0.5, -0.5),
        )
        axes.set_title(title)
        axes.set_xticks(round_ticks(len(mean), MAX_ROUND_TICKS // 2 if len(shown) > 8 else MAX_ROUND_TICKS))
        label_classes(axes, group.classes, max(2, min(MAX_CLASSES, int(height / 0.1))))
    figure.colorbar(image, ax=all_axes, label="test accuracy (%)", aspect=30)
    if len(found) > len(shown):
        figure.suptitle(f"the first {len(shown)} of {len(found)} groups of runs")
    return figure


def until_next_evaluation(group: Group) -> np.ndarray:
    """Return the mean accuracy of each class over seeds: float64 (rounds, classes).

    Rounds without an evaluation have the values of the last one before them, and NaN before the first.
    """
    mean, rounds = group.column("accuracy_per_class").mean(0), group.evaluated()
    known = np.searchsorted(rounds, np.arange(len(mean)), side="right")
    return np.vstack([np.full((1, mean.shape[1]), np.nan), mean[rounds]])[known]


@styled
def _over_rounds(paths: Sequence[Path], name: str, label: str, unit: float) -> Figure:
    found, common = groups(paths)
    titles = list(dict.fromkeys(group.panel for group in found))
    settings = list(dict.fromkeys(group.settings for group in found))
    figure, all_axes = panels(len(titles), 2.4, "round", label)
    for title, axes in zip(titles, all_axes):
        axes.set_title(title or _title(common))
        drawn = []
        for group in (group for group in found if group.panel == title):
            rounds, kind = group.evaluated(), settings.index(group.settings)
            curves = unit * group.column(name)[:, rounds]
            mean, x = curves.mean(0), rounds + 1
            colour, style = tinted(COLOURS[group.method], kind), LINE_STYLES[kind % len(LINE_STYLES)]
            about = f"{group.method}, {group.settings}" if group.settings else group.method
            drawn.append(Curve(about, x, mean, colour, style))
            for curve in group.shorter_runs(name):
                known = np.flatnonzero(np.isfinite(curve))
                axes.plot(known + 1, unit * curve[known], style, color=colour, linewidth=0.5)
            if len(curves) > 1:
                deviation = curves.std(0, ddof=1)
                axes.fill_between(x, *band(name, mean, deviation), color=colour, alpha=0.15, linewidth=0)
        draw_curves(figure, axes, drawn)
        axes.set_xticks(round_ticks(max(int(curve.x.max(initial=1)) for curve in drawn)))
        axes.grid()
    handles = {name: handle for axes in all_axes for handle, name in zip(*axes.get_legend_handles_labels())}
    if len(handles) > MAX_INSIDE_ENTRIES or max(map(len, handles)) > MAX_INSIDE_LENGTH:
        legend_below(figure, handles.values(), handles)
    else:
        all_axes[0].legend(handles.values(), handles, frameon=False)
    if titles != [""]:
        figure.suptitle(_title(common))
    return figure


def band(name: str, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper edge of a band around a mean, within what the column can be.

    name: accuracy, in percent, or loss.
    """
    low, high = mean - deviation, mean + deviation
    return np.maximum(low, 0), np.minimum(high, 100 if name == "accuracy" else np.inf)


def _title(common: dict[str, Any]) -> str:
    """Name data set, clients and partition, as far as all runs share them."""
    parts = [data_name(common)] if "data.name" in common else []
    parts += [f"{common['clients']} clients"] if "clients" in common else []
    if common.get("partition.scheme") == "dirichlet" and "partition.alpha" in common:
        parts.append(f"Dirichlet({common['partition.alpha']:g})")
    return ", ".join(parts)
