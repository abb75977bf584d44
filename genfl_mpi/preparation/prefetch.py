"""Download data sets and checkpoints before a run: the `prefetch` command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genfl_mpi.data import datasets
from genfl_mpi.generation import model_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from genfl_mpi.config.settings import Config


def prefetch(runs: Collection[Config]) -> Iterator[str]:
    """Download the data sets and checkpoints of `runs`, and yield a line for each.

    Run it where the network is reachable, such as a login node.
    """
    for data in {run.data for run in runs}:
        datasets.download(data)
        folder = datasets.describe(data).folder
        yield f"data set {data.name}: " + (f"in {data.root}" if folder else "installed with the package")
    for name in sorted({run.generation.checkpoint for run in runs if run.generates}):
        is_function = model_folder.is_function(name)
        yield f"generator {name}: " + ("a function" if is_function else f"in {model_folder.fetch(name)}")
