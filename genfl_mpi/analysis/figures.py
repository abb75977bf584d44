"""Draw figures by name, each from results files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure

from genfl_mpi.analysis import cost_figures, curves, repair
from genfl_mpi.analysis.heterogeneity import heterogeneity
from genfl_mpi.analysis.personal_figure import personal
from genfl_mpi.analysis.privacy_figure import privacy
from genfl_mpi.analysis.robustness import robustness
from genfl_mpi.analysis.timeline import timeline
from genfl_mpi.config.loading import validate
from genfl_mpi.data import datasets
from genfl_mpi.results.reader import open_results, read_array, read_columns, read_config, report_damage
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError

MULTI_RUN = {
    "accuracy": curves.accuracy,
    "loss": curves.loss,
    "classes": curves.classes,
    "costs": cost_figures.measured,
    "heterogeneity": heterogeneity,
    "repair": repair.labels,
    "fidelity": repair.fidelity,
    "gain": repair.gain,
    "robustness": robustness,
    "personal": personal,
    "privacy": privacy,
}
IMAGES_PER_CLASS = 6  # generated, and as many real ones


def draw(name: str, paths: Sequence[Path], round: int | None = None) -> tuple[Figure, Sequence[Path]]:
    """Return the figure `name`, and the results files that it shows. Raises UserError.

    A figure of one run shows the first GenFL run, or else the first run; "images" shows the first run that
    has images. round: of a timeline.
    """
    if name in MULTI_RUN:
        return MULTI_RUN[name](paths), paths
    draw_one = {"partition": partition, "timeline": lambda path: timeline(path, round), "images": images}[
        name
    ]
    method_of = {path: _method(path) for path in paths}
    preferred = ("genfl", "aigc", "sent", "filled") if name == "images" else ("genfl",)
    path = next((path for method in preferred for path in paths if method_of[path] == method), paths[0])
    return draw_one(path), [path]


def _method(path: Path) -> str:
    with open_results(path) as file, report_damage(path):
        return read_config(file)["method"]


def partition(path: Path) -> Figure:
    """Draw the samples of each class at each client. Raises UserError."""
    with open_results(path) as file, report_damage(path):
        names = yaml.safe_load(file["config"].attrs["class_names"])
        return plotting.partition(read_array(file, "partition/label_histograms"), names)


def images(path: Path) -> Figure:
    """Draw the first generated images of each class beside as many test images. Raises UserError.

    Test images are omitted if the data set is not available.
    """
    with open_results(path) as file, report_damage(path):
        config, names = read_config(file), yaml.safe_load(file["config"].attrs["class_names"])
        labels, pixels = read_columns(file, "generated", ["label", "image"]).values()
        if pixels.ndim != 4:
            raise UserError(f"{path}: its samples are not images; `python -m genfl_mpi show` prints texts")
        if not len(labels):
            raise UserError(
                f"{path}: has no generated images; give a run with method=genfl, aigc, sent or filled"
            )
        first = np.sort(
            np.concatenate([np.flatnonzero(labels == c)[:IMAGES_PER_CLASS] for c in range(len(names))])
        )
        sets = {"generated": (pixels[first], labels[first])}
    try:
        arrays = datasets.load(validate(config, str(path)).data)
        sets["real, test set"] = arrays["test_images"], arrays["test_labels"]
    except UserError:
        sets["generated (data set not available)"] = sets.pop("generated")
    return plotting.sheet(sets, names, IMAGES_PER_CLASS)
