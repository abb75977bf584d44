"""Draw the final accuracy of every attack under every defence, from results files alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from genfl_mpi.analysis.summary import mean_of_last
from genfl_mpi.config.loading import validate
from genfl_mpi.results.reader import open_results, read_columns, read_config, report_damage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.plotting import panels, styled

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config

ROOTS = {"genfl": "generated root", "pool": "real root"}  # of FLTrust, by method
LAST = 3  # evaluated rounds whose accuracy is averaged

Outcome = tuple[str, str, str, float, float]


def outcome(path: Path) -> Outcome:
    """Return (panel, attack, defence, accuracy, success) of a run. Raises UserError.

    panel: share of attackers and skew. accuracy: mean over the last evaluated rounds. success: of a backdoor
    in the last round, NaN without one.
    """
    with open_results(path) as file, report_damage(path):
        config: Config = validate(read_config(file), str(path))
        accuracy = read_columns(file, "rounds", ["accuracy"])["accuracy"]
        success = read_columns(file, "attacks", ["success"])["success"]
    attack, defence = config.attack, config.defence.name
    name = f"{defence}, {ROOTS.get(config.method, config.method)}" if defence == "fltrust" else defence
    return (
        f"{100 * attack.share:g} % attackers, α {config.partition.alpha:g}",
        attack.kind if attack.share else "none",
        name,
        mean_of_last(path, accuracy, LAST),
        float(success[-1]) if len(success) else np.nan,
    )


@styled
def robustness(paths: Sequence[Path]) -> Figure:
    """Draw a heat map per share of attackers: accuracy in percent, below it a backdoor's success.

    Cells are means over seeds. Raises UserError, also without attackers.
    """
    found: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    attacks, defences = {}, {}
    for path in paths:
        panel, attack, defence, final, success = outcome(path)
        found[panel][attack, defence].append((final, success))
        attacks[attack] = defences[defence] = True
    if set(attacks) == {"none"}:
        raise UserError(f"{paths[0]}: has no attackers; give runs with attack.share above 0")
    figure, grid = panels(len(found), 0.9 + 0.28 * len(defences), "", "")
    for axes, (panel, cells) in zip(grid, found.items()):
        shown, texts = np.full((len(defences), len(attacks)), np.nan), []
        for row, defence in enumerate(defences):
            for column, attack in enumerate(attacks):
                if values := cells.get((attack, defence)):
                    shown[row, column], success = 100 * np.mean(values, axis=0)
                    text = f"{shown[row, column]:.0f}"
                    text += f"\n({success:.0f})" if np.isfinite(success) else ""
                    texts.append((row, column, text))
        axes.imshow(shown, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for row, column, text in texts:
            color = "white" if shown[row, column] < 50 else "black"
            axes.text(column, row, text, size=5, ha="center", va="center", color=color)
        axes.set_title(f"{panel}\naccuracy (%), mean of the last {LAST} tests", size="small")
        axes.set_xticks(range(len(attacks)), attacks, rotation=45, ha="right")
        axes.set_yticks(range(len(defences)), defences)
    return figure
