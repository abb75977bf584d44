"""What all figures share: a style for one column of a two-column paper, colours, and how they are written."""

import io
import os
import textwrap
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from genfl_mpi.util.errors import UserError

# Okabe and Ito's colours and a wine of Tol's, which the colour-blind tell apart: a method has the same one in every figure.
COLOURS = {
    "FedAvg": "#0072B2",
    "AIGC-only": "#E69F00",
    "GenFL": "#009E73",
    "public pool": "#CC79A7",
    "FedAvg, more steps": "#56B4E9",
    "images sent": "#882255",
    "clients fill": "#D55E00",
}
LINE_STYLES = ("-", "--", ":", "-.")
HATCHES = ("", "/////", ".....", "xxxxx")  # of bars, for the same, in the ground's colour
LONGEST = 54  # letters of a legend's line
WIDTH = 3.5  # inches: one column of a two-column paper
STYLE = {
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
DARK = dict.fromkeys(
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), "#e4e6ea"
) | {"figure.facecolor": "#1f2229"}
# Files by their ending, with what they are to say of themselves: no dates, so that the same figure is the same file.
FORMATS = {".png": None, ".svg": {"Creator": None, "Date": None}, ".pdf": {"CreationDate": None}}
MOST_CLIENTS = 200  # in a picture of the partition
MOST_CLASSES = 20  # with a row or a label of their own


def styled(function):
    """Draw with STYLE, whatever the user's own style is, which stays as it is."""

    @wraps(function)
    def drawn(*arguments, **named):
        with matplotlib.rc_context(STYLE | ground.get()):
            return function(*arguments, **named)

    return drawn


ground = ContextVar("ground", default={})  # what is drawn otherwise than in STYLE


@contextmanager
def on_dark():
    """Within it, figures are drawn for a dark ground."""
    before = ground.set(DARK)
    try:
        yield
    finally:
        ground.reset(before)


def column(rows, height, columns=1, **more):
    """A figure as wide as a column, with a grid of axes, each row of which is `height` inches high."""
    figure = Figure((WIDTH, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def tinted(colour, number):
    """A colour for the kind of runs of this number, of which every so many have a line style or hatch of their own: itself, then lighter,
    then what stands out more from the ground."""
    towards, share = ((0, 0), (1, 0.55), (1, 0.85) if ground.get() else (0, 0.5))[
        number // len(LINE_STYLES) % 3
    ]
    return colour if not share else tuple((1 - share) * part + share * towards for part in to_rgb(colour))


def legend_below(figure, handles, labels, columns=3):
    """A legend at the foot of a figure, in as many columns as fit their longest label, at most `columns`. Returns how many lines of text
    it has."""
    labels = [textwrap.fill(label, LONGEST) for label in labels]
    longest = max(len(line) for label in labels for line in label.splitlines())
    fit = max(
        1, min(columns, int(WIDTH / (0.05 * longest + 0.5)))
    )  # inches: of a letter, and of a handle with the gaps beside it
    figure.legend(handles, labels, loc="outside lower center", ncols=fit, frameon=False, handlelength=2.4)
    return sum(
        max(label.count("\n") + 1 for label in labels[row::rows])
        for rows in [-(-len(labels) // fit)]
        for row in range(rows)
    )


@styled
def save(figure, out):
    """Write a figure into the image file `out`, of the kind that its ending tells: the same bytes for the same figure. Raises
    UserError."""
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in FORMATS:
        raise UserError(f"{out}: the figure cannot be written: its name must end in .png, .svg or .pdf")
    try:
        figure.savefig(out, dpi=300, metadata=FORMATS[suffix])
    except OSError as error:
        raise UserError(f"{out}: the figure cannot be written: {error.strerror}") from None


@styled
def svg(figure):
    """A figure as the bytes of an SVG file that lets the ground shine through."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", dpi=150, transparent=True, metadata=FORMATS[".svg"])
    return stream.getvalue()


@styled
def partition(histograms, names):
    """The samples of each label that each client holds, int (clients, classes): a column a client, of at most MOST_CLIENTS."""
    shown = histograms[:MOST_CLIENTS]
    figure, [[axes]] = column(1, 0.8 + min(2.6, 0.15 * len(names)))
    image = axes.imshow(
        np.where(shown, shown, np.nan).T,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis" if ground.get() else "viridis_r",
        norm="log",
    )  # much stands out from the ground
    label_classes(axes, names)
    part = f", the first {MOST_CLIENTS} of {len(histograms)}" if len(histograms) > MOST_CLIENTS else ""
    axes.set(xlabel=f"client{part}", ylabel="class")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, label="samples", format="%g")
    return figure


def label_classes(axes, names):
    """Names at a vertical axis of classes, of every so manieth where there are many."""
    every = -(-len(names) // MOST_CLASSES)
    axes.set_yticks(range(0, len(names), every), names[::every])


@styled
def sheet(sets, names, columns):
    """The first `columns` images of each class in each of `sets`, side by side: a row a class with its name, of at most MOST_CLASSES
    classes, and a word where it has no image.

    sets: {title: (uint8 images (n, C, H, W), int labels (n,))}; names: of all classes.
    """
    classes = np.unique(np.linspace(0, len(names) - 1, min(len(names), MOST_CLASSES)).round().astype(int))
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


def _tiles(images, labels, classes, columns):
    """uint8 RGBA: a row of tiles for each class, transparent where there is no image."""
    _, channels, height, width = images.shape
    tiles = np.zeros((len(classes), columns, height + 2, width + 2, 4), dtype=np.uint8)
    for row, c in enumerate(classes):
        own = images[labels == c][:columns].transpose(0, 2, 3, 1)
        tiles[row, : len(own), 1:-1, 1:-1, :3] = (
            np.broadcast_to(own, (*own.shape[:3], 3)) if channels == 1 else own
        )
        tiles[row, : len(own), 1:-1, 1:-1, 3] = 255
    return tiles.transpose(0, 2, 1, 3, 4).reshape(len(classes) * (height + 2), columns * (width + 2), 4)
