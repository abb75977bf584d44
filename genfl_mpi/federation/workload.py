"""The workload to price: the `Trace` in a results file, and the part given by the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.data import datasets, public
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.edge.attendance import DECLINED
from genfl_mpi.edge.trace import Trace, label_value
from genfl_mpi.federation import transforms
from genfl_mpi.generation.image_flops import count_configured
from genfl_mpi.learning import models
from genfl_mpi.learning.flops import training_flops
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.results import reader

if TYPE_CHECKING:
    import h5py

    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.datasets import Description

HALF_BYTES = 2  # of a generator's weight, which is sent in half precision
PLACEMENTS = {
    "sent_to_clients": "P2",
    "made_by_clients": "P3",
}  # of images that clients train on; all others are P1


def model_fields(config: Config, about: Description) -> dict[str, Any]:
    """Return the fields of a `Trace` that follow from the model, whatever the rounds.

    about: the data set's `Description`.
    """
    model = FlatModel(models.build(config.model, len(about.classes), about.shape, 0))
    size = len(model.weights)
    return {
        "clients": config.clients,
        "augmented_epochs": config.augmented.epochs,
        "shape": about.shape,
        "sample_flops": training_flops(model.module, about.shape),
        "placement": PLACEMENTS.get(config.composition.images, "P1"),
        "weights_bytes": size * model.weights.element_size(),
        "upload_bytes": transforms.upload_bytes(config, size, model.parameters),
    }


def generator_fields(config: Config) -> dict[str, Any]:
    """Return the fields of a `Trace` that follow from the generator.

    Raises UserError if the generator is a user's function, whose costs are unknown.
    """
    if not config.generates:
        return {}
    generator = count_configured(config.generation)
    return {"image_flops": generator.image, "generator_bytes": HALF_BYTES * generator.weights}


def read_trace(file: h5py.File, config: Config) -> tuple[Trace, list[np.ndarray]]:
    """Return the `Trace` in an open results file, and the rows of each round's cohort in /clients.

    The trace is computed as if the file's configuration were `config`. Rows: bool (rows,) a round, without
    clients that declined. Raises UserError.
    """
    rounds = reader.read_columns(file, "rounds", ("round", "images_used"))
    clients = reader.read_columns(
        file, "clients", ("round", "client", "samples", "images", "epochs", "status")
    )
    members = [(clients["status"] != DECLINED) & (clients["round"] == round) for round in rounds["round"]]
    # The epochs that method=matched adds do not change.
    clients["epochs"] = (
        clients["epochs"] + config.training.epochs - reader.read_config(file)["training"]["epochs"]
    )
    clients["samples"] = clients["samples"] - clients["images"]
    by_round = {name: [column[rows] for rows in members] for name, column in clients.items()}
    made_in = reader.read_columns(file, "generated", ["round"])["round"]
    shared = reader.read_array(file, "partition/shared_labels")
    return Trace(
        **model_fields(config, datasets.describe(config.data)),
        **generator_fields(config),
        cohorts=by_round["client"],
        samples=by_round["samples"],
        epochs=by_round["epochs"],
        made=by_round["images"] if config.fills else None,
        new_images=np.array([(made_in == round).sum() for round in rounds["round"]]),
        pool=rounds["images_used"],
        missing=(count_held_labels(file, config) == 0).mean(1),
        value=label_value(shared, earth_movers_distance(shared)),
    ), members


def count_held_labels(file: h5py.File, config: Config) -> np.ndarray:
    """Count every client's real samples of each label, including the shared ones: int (clients, classes)."""
    histograms = reader.read_array(file, "partition/label_histograms")
    return histograms + public.class_counts(config.data.shared, histograms.shape[1])
