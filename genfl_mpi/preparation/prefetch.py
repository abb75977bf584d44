"""Download data sets, pretrained weights and checkpoints before a run: the `prefetch` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.data import datasets
from genfl_mpi.generation import model_folder
from genfl_mpi.learning import library_models
from genfl_mpi.util.progress_bar import progress_bar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from genfl_mpi.config.sections.samples import Data
    from genfl_mpi.config.settings import Config


def prefetch(runs: Collection[Config]) -> Iterator[str]:
    """Download the data sets, pretrained weights and checkpoints of `runs`, and yield a line for each.

    Run it where the network is reachable, such as a login node.
    """
    for data in {run.data for run in runs}:
        datasets.download(data)
        yield f"data set {data.name}: {_place(data)}"
        if data.arrays is not None:
            with progress_bar(f"decode {data.name}", "images") as note:
                datasets.make_arrays(data, note)
            yield f"decoded images: in {data.arrays}"
    for model in {run.model for run in runs}:
        if line := library_models.fetch(model):
            yield line
    for name in sorted({run.generation.checkpoint for run in runs if run.generates}):
        is_function = model_folder.is_function(name)
        yield f"generator {name}: " + ("a function" if is_function else f"in {model_folder.fetch(name)}")


def _place(data: Data) -> str:
    """Describe where a data set is."""
    if data.name in datasets.SOURCES or datasets.describe(data).folder or data.name == "folder":
        return f"in {data.root}"
    return "installed with the package"
