"""The table of the command `models`: size, bytes, FLOPs and speed of networks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.config.functions import MODEL_LIBRARIES
from genfl_mpi.data import datasets
from genfl_mpi.learning import library_models, models
from genfl_mpi.learning.flops import training_flops
from genfl_mpi.learning.steps import steps_of
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from genfl_mpi.config.sections.local_training import Training
    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description

TIMED_STEPS = 3  # after one that warms up
HEADER = f"{'network':<34} {'parameters':>12} {'trained':>12} {'MB sent':>8} {'MFLOPs':>9}"


def describe(config: Config, names: Sequence[str], measures: bool = True) -> Iterator[str]:
    """Yield the table of some networks for the data set and the `model` settings of `config`.

    names: of networks, all of this package by default; the name of a library lists its networks. measures:
    whether to measure the seconds of a step with training.batch_size on this machine. A network that does not
    fit has the reason in its row. Raises UserError for an unknown library.
    """
    libraries = [name for name in names if name in MODEL_LIBRARIES]
    for library in libraries:
        for name in library_models.list_names(library):
            yield f"{library}:{name}"
    rows = [name for name in names if name not in MODEL_LIBRARIES] or (
        [] if libraries else list(models.MODELS)
    )
    if not rows:
        return
    about = datasets.describe(config.data)
    yield (
        f"samples of {' x '.join(map(str, about.shape))}, {len(about.classes)} classes; "
        f"model.trained={config.model.trained}; a step on {config.training.batch_size} samples"
    )
    yield HEADER + f"{' s/step' * measures:>9}"
    for name in rows:
        yield _row(name, config, about, measures)


def _row(name: str, config: Config, about: Description, measures: bool) -> str:
    settings = config.model.model_copy(update={"name": name})
    try:
        model = FlatModel(models.build(settings, len(about.classes), about.shape, 0))
    except UserError as error:
        return f"{name:<34} {first_line(error)}"
    count = sum(parameter.numel() for parameter in model.module.parameters())
    megabytes = model.weights.nbytes / 1e6
    flops = training_flops(model.module, about.shape) / 1e6
    row = f"{name:<34} {count:>12,} {model.parameters:>12,} {megabytes:>8.2f} {flops:>9.1f}"
    return row + (f" {_measure_step(model, config.training, about):>8.3g}" if measures else "")


def _measure_step(model: FlatModel, settings: Training, about: Description) -> float:
    """Return the seconds of an SGD step, the median of a few."""
    images = torch.zeros(settings.batch_size, *about.shape)
    labels = torch.arange(settings.batch_size) % len(about.classes)
    step = steps_of(model, settings)
    step.begin(model.weights.clone(), settings.lr)
    seconds = []
    for _ in range(1 + TIMED_STEPS):
        start = time.perf_counter()
        step(images, labels)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))
