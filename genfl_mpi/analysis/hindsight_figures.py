"""Draw kappa in hindsight: the segment between a round's two models, its barrier, policies' regret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from genfl_mpi.results.reader import open_results, read_columns, read_config, report_damage
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.plotting import LINE_STYLES, WIDTH, mark_integers, styled


@dataclass(frozen=True)
class Hindsight:
    """Results of the hindsight evaluation of a run.

    rounds: int (R,), the evaluated ones. segment: float64 (P,), values of kappa2; loss: float64 (R, P), of
    their models. least: float64 (R,), the least loss of all candidates; best: float64 (R,), its kappa2.
    barrier: float64 (R,). kappa2, regret: float64 (R,) by policy. used: the run's policy.
    """

    rounds: np.ndarray
    segment: np.ndarray
    loss: np.ndarray
    least: np.ndarray
    best: np.ndarray
    barrier: np.ndarray
    kappa2: dict[str, np.ndarray]
    regret: dict[str, np.ndarray]
    used: str


def read(path: str | Path) -> Hindsight:
    """Return the `Hindsight` of a results file. Raises UserError."""
    with open_results(path) as file, report_damage(path):
        columns = read_columns(file, "hindsight")
        rounds = np.unique(columns["round"])
        used = read_config(file)["kappa"]["policy"].rpartition(":")[2]
    if not len(rounds):
        raise UserError(
            f"{path}: has no hindsight data; make the run with hindsight.every=1 and method=genfl"
        )
    _refuse_changes(path, columns, rounds)
    names = [name.decode() for name in dict.fromkeys(columns["policy"].tolist())]

    def values_of(name: str, column: str) -> np.ndarray:
        return columns[column][columns["policy"] == name.encode()].reshape(len(rounds), -1)

    kappa2, losses = (columns[name].reshape(len(rounds), -1) for name in ("kappa2", "loss"))
    segment, loss = values_of("", "kappa2")[0], values_of("", "loss")
    best = np.take_along_axis(kappa2, losses.argmin(1)[:, None], 1)[:, 0]
    return Hindsight(
        rounds,
        segment,
        loss,
        losses.min(1),
        best,
        barrier(segment, loss),
        {name: values_of(name, "kappa2")[:, 0] for name in names if name},
        {name: values_of(name, "regret")[:, 0] for name in names if name},
        used,
    )


def _refuse_changes(path: str | Path, columns: dict[str, np.ndarray], rounds: np.ndarray) -> None:
    """Raise UserError if candidates or policies changed between rounds."""
    ends = np.searchsorted(columns["round"], rounds[1:])
    policies, kappa2 = (np.split(columns[name], ends) for name in ("policy", "kappa2"))
    candidates = [(names.tolist(), values[names == b""].tolist()) for names, values in zip(policies, kappa2)]
    if changed := next((round for round, one in zip(rounds, candidates) if one != candidates[0]), None):
        raise UserError(
            f"{path}: hindsight or kappa.policy changed in round {changed}, so earlier and later rounds have "
            "different candidates; make the run with one setting of both"
        )


def barrier(segment: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return the largest rise of the loss above the line between the segment's ends, float64 (R,).

    It is 0 if the two models lie in one basin (Frankle et al. 2020). segment: (P,). loss: (R, P).
    """
    return (loss - (1 - segment) * loss[:, :1] - segment * loss[:, -1:]).max(1)


def table(hindsight: Hindsight) -> Iterator[str]:
    """Yield lines of at most 80 columns: policies and segment ends, by increasing regret."""
    yield f"{'kappa policy':<22}{'mean kappa2':>12}{'mean regret (nat)':>19}{'largest':>9}{'at optimum':>16}"
    ends = {
        "never (kappa2=0)": (0.0, hindsight.loss[:, 0]),
        "always (kappa2=1)": (1.0, hindsight.loss[:, -1]),
    }
    rows = [(name, hindsight.kappa2[name].mean(), hindsight.regret[name]) for name in hindsight.regret]
    rows += [(name, kappa2, loss - hindsight.least) for name, (kappa2, loss) in ends.items()]
    for name, kappa2, regret in sorted(rows, key=lambda row: row[2].mean()):
        mark = " (used)" if name == hindsight.used else ""
        hit = f"{(regret < 0.01).sum()} of {len(regret)} rounds"
        yield f"{(name + mark)[:21]:<22}{kappa2:12.2f}{regret.mean():19.4f}{regret.max():9.3f}{hit:>16}"
    yield f"at optimum: within 0.01 nat of the least loss; mean best kappa2 {hindsight.best.mean():.2f}"
    worst = hindsight.barrier.argmax()
    largest = f"{hindsight.barrier[worst]:.4f} in round {hindsight.rounds[worst]}"
    yield f"barrier: mean {hindsight.barrier.mean():.4f} nat, largest {largest}"


@styled
def draw(hindsight: Hindsight) -> Figure:
    """Draw the loss along each round's segment, the policies' kappa2 and the best, and cumulative regret."""
    figure = Figure((2 * WIDTH, 3.2), layout="constrained")  # both columns of a page
    left, middle, right = figure.subplots(1, 3)
    colours = colormaps["viridis"](np.linspace(0, 0.95, len(hindsight.rounds)))
    for row, least, colour in zip(hindsight.loss, hindsight.least, colours):
        left.plot(hindsight.segment, row - least, color=colour, linewidth=1)
    left.set(xlabel="κ2: from ω_fl (0) to ω_a (1)", ylabel="loss above minimum (nat)")
    left.set_yscale("symlog", linthresh=0.1)
    scale = ScalarMappable(Normalize(hindsight.rounds[0], hindsight.rounds[-1]), "viridis")
    figure.colorbar(
        scale, ax=left, label="round", location="top", shrink=0.7, ticks=MaxNLocator(4, integer=True)
    )
    order = sorted(hindsight.regret, key=lambda name: hindsight.regret[name].sum())
    for number, name in enumerate(order):
        line = {
            "color": colormaps["tab10"](number % 10),
            "linestyle": LINE_STYLES[number // 10 % len(LINE_STYLES)],
            "linewidth": 2 if name == hindsight.used else 1,
        }
        middle.plot(hindsight.rounds, hindsight.kappa2[name], **line)
        right.plot(
            hindsight.rounds,
            np.cumsum(hindsight.regret[name]),
            label=name + (" (used)" if name == hindsight.used else ""),
            **line,
        )
    middle.plot(hindsight.rounds, hindsight.best, "k.", label="best in hindsight")
    middle.set(xlabel="round", ylabel="κ2", title="chosen κ2", ylim=(-0.03, 1.03))
    right.set(xlabel="round", ylabel="nat", title="cumulative regret")
    for axes in (middle, right):
        mark_integers(axes.xaxis)
    for axes in (left, middle, right):
        axes.grid()
    handles, names = (
        [*one, *other]
        for one, other in zip(middle.get_legend_handles_labels(), right.get_legend_handles_labels())
    )
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
    return figure
