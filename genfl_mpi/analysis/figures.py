"""The figures by name, each from results files alone."""

import numpy as np
import yaml

from genfl_mpi.analysis import cost_figures, curves
from genfl_mpi.analysis.heterogeneity import heterogeneity
from genfl_mpi.analysis.timeline import timeline
from genfl_mpi.config.loading import validate
from genfl_mpi.data import datasets
from genfl_mpi.results.reader import array_of, columns_of, config_of, damage, open_results
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError

OF_RUNS = {
    "accuracy": curves.accuracy,
    "loss": curves.loss,
    "classes": curves.classes,
    "costs": cost_figures.measured,
    "heterogeneity": heterogeneity,
}
IMAGES = 6  # of each class, generated and real


def draw(name, paths, round=None):
    """(figure, whose): a figure of one of the names, and the results files that it shows. A figure of one run shows the first one of
    GenFL, or else the first one; images the first run that has some. round: of a timeline. Raises UserError."""
    if name in OF_RUNS:
        return OF_RUNS[name](paths), paths
    of_run = {"partition": partition, "timeline": lambda path: timeline(path, round), "images": images}[name]
    method_of = {path: _method(path) for path in paths}
    telling = ("genfl", "aigc", "sent", "filled") if name == "images" else ("genfl",)
    path = next((path for method in telling for path in paths if method_of[path] == method), paths[0])
    return of_run(path), [path]


def _method(path):
    with open_results(path) as file, damage(path):
        return config_of(file)["method"]


def partition(path):
    """The client x class picture of a results file. Raises UserError."""
    with open_results(path) as file, damage(path):
        names = yaml.safe_load(file["config"].attrs["class_names"])
        return plotting.partition(array_of(file, "partition/label_histograms"), names)


def images(path):
    """Generated images of each class, the first ones, beside as many real ones of the test set, if the data set is there.
    Raises UserError."""
    with open_results(path) as file, damage(path):
        config, names = config_of(file), yaml.safe_load(file["config"].attrs["class_names"])
        labels, pixels = columns_of(file, "generated", ["label", "image"]).values()
        if not len(labels):
            raise UserError(
                f"{path}: there are no generated images; runs of method=genfl, aigc, sent and filled have some"
            )
        first = np.sort(np.concatenate([np.flatnonzero(labels == c)[:IMAGES] for c in range(len(names))]))
        sets = {"generated": (pixels[first], labels[first])}
    try:
        arrays = datasets.load(validate(config, str(path)).data)
        sets["real, test set"] = arrays["test_images"], arrays["test_labels"]
    except UserError:
        sets["generated; the data set is not here"] = sets.pop("generated")
    return plotting.sheet(sets, names, IMAGES)
