"""What the kappa laboratory saw in a run: the segment between each round's two models, its barrier, and the policies' regret."""

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from genfl_mpi.results.reader import columns_of, config_of, damage, open_results
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.plotting import LINE_STYLES, WIDTH, styled


@dataclass(frozen=True)
class Looks:
    """rounds: int (R,), those looked at. segment: float64 (P,), values of kappa2; loss: float64 (R, P), of the models there.
    least: float64 (R,), the least loss of all that were tried; best: float64 (R,), its kappa2. barrier: float64 (R,). kappa2,
    regret: float64 (R,) by policy; own: the run's policy."""

    rounds: np.ndarray
    segment: np.ndarray
    loss: np.ndarray
    least: np.ndarray
    best: np.ndarray
    barrier: np.ndarray
    kappa2: dict
    regret: dict
    own: str


def read(path):
    """The `Looks` in a results file. Raises UserError."""
    with open_results(path) as file, damage(path):
        columns = columns_of(file, "hindsight")
        rounds, own = np.unique(columns["round"]), config_of(file)["kappa"]["policy"].rpartition(":")[2]
    if not len(rounds):
        raise UserError(
            f"{path}: nothing was looked at; make the run with hindsight.every=1, and a method that has both models"
        )
    _refuse_changes(path, columns, rounds)
    names = [name.decode() for name in dict.fromkeys(columns["policy"].tolist())]

    def of(name, column):
        return columns[column][columns["policy"] == name.encode()].reshape(len(rounds), -1)

    kappa2, losses = (columns[name].reshape(len(rounds), -1) for name in ("kappa2", "loss"))
    segment, loss = of("", "kappa2")[0], of("", "loss")
    best = np.take_along_axis(kappa2, losses.argmin(1)[:, None], 1)[:, 0]
    return Looks(
        rounds,
        segment,
        loss,
        losses.min(1),
        best,
        barrier(segment, loss),
        {name: of(name, "kappa2")[:, 0] for name in names if name},
        {name: of(name, "regret")[:, 0] for name in names if name},
        own,
    )


def _refuse_changes(path, columns, rounds):
    ends = np.searchsorted(columns["round"], rounds[1:])
    asked, tried = (np.split(columns[name], ends) for name in ("policy", "kappa2"))
    looked = [(policies.tolist(), kappa2[policies == b""].tolist()) for policies, kappa2 in zip(asked, tried)]
    if changed := next((round for round, one in zip(rounds, looked) if one != looked[0]), None):
        raise UserError(
            f"{path}: from round {changed} on other models or policies were looked at, because hindsight or kappa.policy "
            "changed there: the rounds cannot be taken together"
        )


def barrier(segment, loss):
    """By how much the loss rises at most above the straight line between the ends of the segment, float64 (R,) (Frankle et al.
    2020): 0 where the two models lie in one basin. segment: (P,); loss: (R, P)."""
    return (loss - (1 - segment) * loss[:, :1] - segment * loss[:, -1:]).max(1)


def table(looks):
    """Lines of at most 80 columns: the policies, the least regret first, and the ends of the segment."""
    yield f"{'kappa policy':<22}{'mean kappa2':>12}{'mean regret (nat)':>19}{'largest':>9}{'at the best':>16}"
    ends = {"never (kappa2=0)": (0.0, looks.loss[:, 0]), "always (kappa2=1)": (1.0, looks.loss[:, -1])}
    rows = [(name, looks.kappa2[name].mean(), looks.regret[name]) for name in looks.regret]
    rows += [(name, kappa2, loss - looks.least) for name, (kappa2, loss) in ends.items()]
    for name, kappa2, regret in sorted(rows, key=lambda row: row[2].mean()):
        mark = " (own)" if name == looks.own else ""
        hit = f"{(regret < 0.01).sum()} of {len(regret)} rounds"
        yield f"{(name + mark)[:21]:<22}{kappa2:12.2f}{regret.mean():19.4f}{regret.max():9.3f}{hit:>16}"
    yield f"at the best: within 0.01 nat of the least loss; best kappa2 in the mean {looks.best.mean():.2f}"
    worst = looks.barrier.argmax()
    yield f"barrier: mean {looks.barrier.mean():.4f} nat, largest {looks.barrier[worst]:.4f} in round {looks.rounds[worst]}"


@styled
def draw(looks):
    """Three panels: the loss along each round's segment, each policy's kappa2 beside the best, and how its regret adds up."""
    figure = Figure((2 * WIDTH, 3.2), layout="constrained")  # both columns of a page
    left, middle, right = figure.subplots(1, 3)
    colours = colormaps["viridis"](np.linspace(0, 0.95, len(looks.rounds)))
    for row, least, colour in zip(looks.loss, looks.least, colours):
        left.plot(looks.segment, row - least, color=colour, linewidth=1)
    left.set(xlabel="κ2: from ω_fl (0) to ω_a (1)", ylabel="loss above the least (nat)")
    left.set_yscale("symlog", linthresh=0.1)
    scale = ScalarMappable(Normalize(looks.rounds[0], looks.rounds[-1]), "viridis")
    figure.colorbar(
        scale, ax=left, label="round", location="top", shrink=0.7, ticks=MaxNLocator(4, integer=True)
    )
    order = sorted(looks.regret, key=lambda name: looks.regret[name].sum())
    for number, name in enumerate(order):
        line = {
            "color": colormaps["tab10"](number % 10),
            "linestyle": LINE_STYLES[number // 10 % len(LINE_STYLES)],
            "linewidth": 2 if name == looks.own else 1,
        }
        middle.plot(looks.rounds, looks.kappa2[name], **line)
        right.plot(
            looks.rounds,
            np.cumsum(looks.regret[name]),
            label=name + (" (own)" if name == looks.own else ""),
            **line,
        )
    middle.plot(looks.rounds, looks.best, "k.", label="best in hindsight")
    middle.set(xlabel="round", ylabel="κ2", title="what each policy chose", ylim=(-0.03, 1.03))
    right.set(xlabel="round", ylabel="nat", title="regret, added up")
    for axes in (middle, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, middle, right):
        axes.grid()
    handles, names = (
        [*one, *other]
        for one, other in zip(middle.get_legend_handles_labels(), right.get_legend_handles_labels())
    )
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
    return figure
