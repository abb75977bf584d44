"""Figures from results files alone."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from genfl_mpi.errors import UserError  # noqa: E402
from genfl_mpi.results.summary import groups  # noqa: E402

# Okabe and Ito's colours, which the colour-blind tell apart: a method has the same one in every figure.
COLOURS = {"FedAvg": "#0072B2", "AIGC-only": "#E69F00", "GenFL": "#009E73", "public pool": "#CC79A7", "FedAvg, more steps": "#56B4E9"}
MOST_CLIENTS = 200  # in a picture of the partition
LINE_STYLES = ("-", "--", ":", "-.")


def accuracy(paths, out):
    """Test accuracy against rounds into the image file `out`: mean over seeds, with a band of a standard deviation; a panel
    for each data set and alpha. Runs with fewer rounds than others of the same kind are thin lines of their own. Raises UserError."""
    found, common = groups(paths)
    panels = list(dict.fromkeys(group.panel for group in found))
    settings = list(dict.fromkeys(group.settings for group in found))
    figure, all_axes = plt.subplots(1, len(panels), figsize=(1 + 4 * len(panels), 3.4), layout="constrained", sharey=True, squeeze=False)
    for panel, axes in zip(panels, all_axes[0]):
        for group in (group for group in found if group.panel == panel):
            rounds = max(map(len, group.accuracy))
            curves = 100 * np.array([curve for curve in group.accuracy if len(curve) == rounds])
            mean, colour, x = curves.mean(0), COLOURS[group.method], np.arange(1, rounds + 1)
            style = LINE_STYLES[settings.index(group.settings) % len(LINE_STYLES)]
            axes.plot(x, mean, style, color=colour, label=f"{group.method}, {group.settings}" if group.settings else group.method)
            for curve in group.accuracy:
                if len(curve) < rounds:  # a run that is behind
                    axes.plot(np.arange(1, len(curve) + 1), 100 * curve, style, color=colour, linewidth=0.6)
            if len(curves) > 1:
                deviation = curves.std(0, ddof=1)
                axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="round", title=panel or _title(common))
        axes.grid(alpha=0.3)
    all_axes[0, 0].set_ylabel("test accuracy (%)")
    all_axes[0, -1].legend(frameon=False, fontsize="small")
    if panels != [""]:
        figure.suptitle(_title(common))
    save(figure, out)


def save(figure, out):
    """Write a figure into the image file `out`, and forget it. Raises UserError."""
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: the figure cannot be written: {getattr(error, 'strerror', None) or error}") from None
    plt.close(figure)


def partition(histograms, names, out):
    """The samples of each label that each client holds, int (clients, classes), into the PNG file `out`: a column a client,
    of at most MOST_CLIENTS."""
    shown = histograms[:MOST_CLIENTS]
    figure, axes = plt.subplots(figsize=(7, 1 + min(5.5, 0.24 * len(names))), layout="constrained")
    image = axes.imshow(np.where(shown, shown, np.nan).T, aspect="auto", interpolation="nearest", cmap="viridis_r", norm="log")
    every = -(-len(names) // 25)
    axes.set_yticks(range(0, len(names), every), names[::every])
    part = f", the first {MOST_CLIENTS} of {len(histograms)}" if len(histograms) > MOST_CLIENTS else ""
    axes.set(xlabel=f"client{part}", ylabel="class")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, label="samples", format="%g")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def sheet(images, labels, names, out, columns=12):
    """The first `columns` images of each class, a row a class with its name, into the PNG file `out`.

    images: uint8 (n, C, H, W); labels: int (n,); names: of the classes.
    """
    _, channels, height, width = images.shape
    tiles = np.full((len(names), columns, height + 2, width + 2, 3), 255, dtype=np.uint8)
    for c in range(len(names)):
        own = images[labels == c][:columns].transpose(0, 2, 3, 1)
        tiles[c, : len(own), 1:-1, 1:-1] = np.broadcast_to(own, (*own.shape[:3], 3)) if channels == 1 else own
    picture = tiles.transpose(0, 2, 1, 3, 4).reshape(len(names) * (height + 2), columns * (width + 2), 3)
    figure, axes = plt.subplots(figsize=(columns * 0.42 + 1.2, len(names) * 0.42 + 0.2), layout="constrained")
    axes.imshow(picture, interpolation="nearest")
    axes.set_yticks((np.arange(len(names)) + 0.5) * (height + 2), names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(out, dpi=150, bbox_inches="tight")  # however long the names
    plt.close(figure)


def _title(common):
    """What all runs have in common."""
    parts = [str(common[key]) for key in ("data.name",) if key in common]
    parts += [f"{common['clients']} clients"] if "clients" in common else []
    if common.get("partition.scheme") == "dirichlet" and "partition.alpha" in common:
        parts.append(f"Dirichlet({common['partition.alpha']:g})")
    return ", ".join(parts)
