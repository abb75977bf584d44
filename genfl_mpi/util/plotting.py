"""Shared by all figures: a style for one column of a two-column paper, colours, and writing to files."""

import io
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from genfl_mpi.util.errors import UserError

# Okabe and Ito's palette and one colour of Tol's, safe for colour-blind readers. A method keeps its colour in
# every figure.
COLOURS = {
    "FedAvg": "#0072B2",
    "GenFL": "#009E73",
    "AIGC-only": "#E69F00",
    "images sent": "#882255",
    "clients fill": "#D55E00",
    "public pool": "#CC79A7",
    "FedAvg, more steps": "#56B4E9",
    "fine-tuned on images": "#999933",
    "distilled on images": "#332288",
}
# The dark ones of these, lighter: for a dark background.
DARK_COLOURS = {"#0072B2": "#4AA3E0", "#882255": "#D0709A", "#332288": "#9A8FE8", "#D55E00": "#EE7F2D"}
LINE_STYLES = ("-", "--", ":", "-.")
HATCHES = ("", "/////", ".....", "xxxxx")  # of bars, in place of line styles; drawn in the background colour
MAX_LEGEND_LINE = 54  # characters
WIDTH = 3.5  # inches: one column of a two-column paper
MAX_HEIGHT = 8.5  # inches of panels: a page, with room for title and legend
MIN_PANEL_HEIGHT = 1.0  # inches
MAX_COLUMN_PANELS = 3  # more panels are drawn across both columns of the page
LEGEND_LINE, TITLE_LINE = 0.15, 0.14  # inches
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.2,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.3,
    "pdf.fonttype": 42,
    "svg.hashsalt": "genfl_mpi",
}
DARK: dict[Any, Any] = dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), "#e4e6ea"
) | {"figure.facecolor": "#1f2229"}
# Metadata by file ending: without dates, so that equal figures are equal files.
FORMATS: dict[str, dict[str, None] | None] = {
    ".png": None,
    ".svg": {"Creator": None, "Date": None},
    ".pdf": {"CreationDate": None},
}
MAX_CLIENTS = 200  # in a figure of the partition
MAX_CLASSES = 20  # with a separate row or label
MAX_ROUND_TICKS = 8
MAX_LOG_TICKS = 4  # with a label, in a narrow panel

P = ParamSpec("P")
R = TypeVar("R")
Labels = list[str] | tuple[str, ...]


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to draw with STYLE, without changing the user's matplotlib settings."""

    @wraps(function)
    def wrapper(*arguments: P.args, **named: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE | DARK if dark.get() else STYLE):
            return function(*arguments, **named)

    return wrapper


dark = ContextVar("dark", default=False)  # whether figures are drawn for a dark background


@contextmanager
def on_dark() -> Iterator[None]:
    """Draw figures for a dark background inside this context."""
    before = dark.set(True)
    try:
        yield
    finally:
        dark.reset(before)


def column(rows: int, height: float, columns: int = 1, **more: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure one column wide, with an array of axes (rows, columns), each `height` inches high."""
    figure = Figure((WIDTH, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def panels(count: int, height: float, xlabel: str, ylabel: str, **more: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels whose outer ones are labelled.

    It is one column of the page wide for up to MAX_COLUMN_PANELS panels, and both columns for more. Panels
    are `height` inches high, or less where all would exceed MAX_HEIGHT.
    """
    columns = 1 if count <= MAX_COLUMN_PANELS else 2 if count <= 8 else 4
    rows = -(-count // columns)
    each = max(MIN_PANEL_HEIGHT, min(height, MAX_HEIGHT / rows))
    figure = Figure((WIDTH if columns == 1 else 2 * WIDTH, rows * each), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **more)
    for axes in grid.flat[count:]:
        axes.remove()
    for number, axes in enumerate(shown := list(grid.flat[:count])):
        if number % columns == 0:
            axes.set_ylabel(ylabel)
        if number >= count - columns:
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)  # above a removed one, too
    return figure, shown


def mark_integers(axis: Axis) -> None:
    """Put ticks at whole numbers only: of rounds, or of clients."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def round_ticks(last: int, most: int = MAX_ROUND_TICKS) -> list[int]:
    """Return up to `most` ticks for rounds 1 to `last`, both included: 1, 5, 10, 15, 21."""
    if last <= most:
        return list(range(1, last + 1))
    steps = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    step = next(step for step in steps if last / step <= most - 1)
    return [1, *(tick for tick in range(step, last, step) if min(tick - 1, last - tick) > step / 2), last]


class Curve(NamedTuple):
    """A curve of a panel. x, y: float64 (n,)."""

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str | tuple[float, ...]
    style: str = "-"
    marker: str | None = None

    def points(self) -> bytes:
        """Return what equal curves have in common."""
        return np.array((self.x, self.y), dtype=np.float64).tobytes()


def draw_curves(figure: Figure, axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw curves. Of those that lie exactly on each other the covered ones are wider; all are named above.

    The legend gets each label once.
    """
    labels_at: dict[bytes, list[str]] = {}
    for curve in curves:
        labels = labels_at.setdefault(curve.points(), [])
        if curve.label not in labels:
            labels.append(curve.label)
    named = set()
    for curve in curves:
        labels = labels_at[curve.points()]
        covering = len(labels) - 1 - labels.index(curve.label)
        axes.plot(
            curve.x,
            curve.y,
            curve.style,
            color=curve.colour,
            linewidth=rcParams["lines.linewidth"] * (1 + 1.5 * covering),
            marker=curve.marker,
            markersize=3,
            label=None if curve.label in named else curve.label,
        )
        named.add(curve.label)
    width = round(MAX_LEGEND_LINE * axes.get_position().width * figure.get_figwidth() / WIDTH)
    notes = [
        textwrap.fill(f"same curve: {' and '.join(names)}", max(20, width))
        for names in labels_at.values()
        if len(names) > 1
    ]
    if notes:
        lines, place = sum(note.count("\n") + 1 for note in notes), axes.get_subplotspec()
        columns = place.get_gridspec().ncols if place else 1
        figure.set_figheight(figure.get_figheight() + TITLE_LINE * lines / columns)
        axes.set_title("\n".join(filter(None, (axes.get_title(), *notes))))


def set_log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis horizontally with 2 to MAX_LOG_TICKS plain numbers inside its limits."""
    low, high = sorted(axis.get_view_interval())
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for digits in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), np.arange(10, 100) / 10, np.arange(100, 1000) / 100):
        ticks = np.outer(decades, digits).ravel()
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) > 1:
            break
    else:
        ticks = np.array([low, high])
    ticks = ticks[:: -(-len(ticks) // MAX_LOG_TICKS)]
    axis.set_ticks(ticks, [_plain_number(tick) for tick in ticks])
    axis.set_minor_formatter(NullFormatter())


def _plain_number(value: float) -> str:
    """Return 0.02, 300 or 20,000; and $10^{6}$ for long numbers."""
    if 1e-3 <= value < 1e6:
        return f"{value:,.10g}" if value >= 1 else f"{value:.6g}"
    exponent = int(np.floor(np.log10(value) + 1e-9))
    digits = f"{value / 10.0**exponent:.2g}"
    return f"$10^{{{exponent}}}$" if digits == "1" else rf"${digits} \cdot 10^{{{exponent}}}$"


def tinted(colour: str, number: int) -> str | tuple[float, ...]:
    """Return the colour of the group of runs with this number.

    The first len(LINE_STYLES) groups have the colour itself and differ in line style or hatch; the next ones
    are lighter, and those after them have more contrast to the background.
    """
    if dark.get():
        colour = DARK_COLOURS.get(colour, colour)
    shades: tuple[tuple[int, float], ...] = ((0, 0), (1, 0.55), (1, 0.85) if dark.get() else (0, 0.5))
    towards, share = shades[number // len(LINE_STYLES) % 3]
    return colour if not share else tuple((1 - share) * part + share * towards for part in to_rgb(colour))


def legend_below(figure: Figure, handles: Iterable[Any], labels: Iterable[str], columns: int = 3) -> None:
    """Draw a legend below a figure, in at most `columns` columns if the longest label fits.

    The figure grows by the legend's height, so that the panels keep theirs.
    """
    texts = [textwrap.fill(label, MAX_LEGEND_LINE) for label in labels]
    longest = max(len(line) for text in texts for line in text.splitlines())
    # 0.05 inches per character, and 0.5 inches per handle with its gaps.
    fit = max(
        1,
        min(
            columns * round(figure.get_figwidth() / WIDTH),
            int(figure.get_figwidth() / (0.05 * longest + 0.5)),
        ),
    )
    figure.legend(handles, texts, loc="outside lower center", ncols=fit, frameon=False, handlelength=2.4)
    rows = -(-len(texts) // fit)
    lines = sum(max(text.count("\n") + 1 for text in texts[row::rows]) for row in range(rows))
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * (lines + 1))  # and its margins


@styled
def save(figure: Figure, out: str | Path) -> None:
    """Write a figure to the image file `out`, in the format of its ending. Equal figures give equal bytes.

    Raises UserError.
    """
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in FORMATS:
        raise UserError(
            f"{out}: the figure cannot be written; choose a file name that ends in .png, .svg or .pdf"
        )
    try:
        figure.savefig(out, dpi=300, metadata=FORMATS[suffix])
    except OSError as error:
        raise UserError(f"{out}: the figure cannot be written: {error.strerror}") from None


@styled
def svg(figure: Figure) -> bytes:
    """Return a figure as an SVG file with a transparent background."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", dpi=150, transparent=True, metadata=FORMATS[".svg"])
    return stream.getvalue()


@styled
def partition(histograms: np.ndarray, names: Labels) -> Figure:
    """Draw the samples per client and label, a column per client, of at most MAX_CLIENTS clients.

    histograms: int (clients, classes); names: of the classes.
    """
    shown = histograms[:MAX_CLIENTS]
    figure, [[axes]] = column(1, 0.8 + min(2.6, 0.15 * len(names)))
    image = axes.imshow(
        np.where(shown, shown, np.nan).T,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis" if dark.get() else "viridis_r",  # large counts contrast with the background
        norm="log",
    )
    label_classes(axes, names)
    part = f", the first {MAX_CLIENTS} of {len(histograms)}" if len(histograms) > MAX_CLIENTS else ""
    axes.set(xlabel=f"client{part}", ylabel="class")
    mark_integers(axes.xaxis)
    figure.colorbar(image, label="samples", format="%g")
    return figure


def label_classes(axes: Axes, names: Labels, most: int = MAX_CLASSES) -> None:
    """Label a vertical axis of classes with at most `most` names."""
    every = -(-len(names) // most)
    axes.set_yticks(range(0, len(names), every), names[::every])


@styled
def sheet(sets: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Labels, columns: int) -> Figure:
    """Draw the first `columns` images of each class in each of `sets`, side by side.

    Each of at most MAX_CLASSES classes has a row, which says "none" where it has no image.
    sets: {title: (uint8 images (n, C, H, W), int labels (n,))}; names: of all classes.
    """
    classes = np.unique(np.linspace(0, len(names) - 1, min(len(names), MAX_CLASSES)).round().astype(int))
    figure, [row] = column(1, 0.35 + len(classes) * (WIDTH - 0.6) / (columns * len(sets)), len(sets))
    for axes, (title, (images, labels)) in zip(row, sets.items()):
        axes.imshow(_tiles(images, labels, classes, columns), interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        height, width = images.shape[2] + 2, images.shape[3] + 2
        for line in np.flatnonzero(~np.isin(classes, labels)):
            axes.text(
                columns * width / 2,
                (line + 0.5) * height,
                "none",
                ha="center",
                va="center",
                fontsize=6,
                color="grey",
            )
    row[0].set_yticks((np.arange(len(classes)) + 0.5) * height, [names[c] for c in classes])
    row[0].tick_params(length=0)
    return figure


def _tiles(images: np.ndarray, labels: np.ndarray, classes: np.ndarray, columns: int) -> np.ndarray:
    """Return a row of tiles per class, uint8 RGBA (height, width, 4), transparent where no image is."""
    _, channels, height, width = images.shape
    tiles = np.zeros((len(classes), columns, height + 2, width + 2, 4), dtype=np.uint8)
    for row, c in enumerate(classes):
        shown = images[labels == c][:columns].transpose(0, 2, 3, 1)
        tiles[row, : len(shown), 1:-1, 1:-1, :3] = (
            np.broadcast_to(shown, (*shown.shape[:3], 3)) if channels == 1 else shown
        )
        tiles[row, : len(shown), 1:-1, 1:-1, 3] = 255
    return tiles.transpose(0, 2, 1, 3, 4).reshape(len(classes) * (height + 2), columns * (width + 2), 4)
