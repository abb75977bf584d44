"""The workload to price: the `Trace` in a results file, and the part given by the configuration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.data import datasets, public
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.edge.attendance import DECLINED
from genfl_mpi.edge.trace import Tiers, Trace, label_value
from genfl_mpi.federation import algorithms, refinements, transforms
from genfl_mpi.generation.image_flops import count_configured
from genfl_mpi.generation.model_folder import is_function
from genfl_mpi.learning import models
from genfl_mpi.learning.flops import training_flops
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.privacy.protocol import phase_bytes
from genfl_mpi.results import reader

if TYPE_CHECKING:
    import h5py

    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description

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
    secured: dict[str, Any] = {}
    known = algorithms.ALGORITHMS.get(config.algorithm.name)
    if config.privacy.secure_aggregation:
        sums = algorithms.find(config).arrays_of_kind("sum", model.parameters, config).values()
        units = size + sum(math.prod(array.shape) for array in sums) + 1  # and the sum of rho
        one = phase_bytes(units, config.cohort, config.privacy.neighbours)
        secured = {"upload_bytes": one.up, "protocol_bytes": one.down}
    return {
        "clients": config.clients,
        "augmented_epochs": config.augmented.epochs * ("mix" in config.composition.use),
        "client_cost": known.client_cost if known else 1.0,
        "shape": about.shape,
        "sample_flops": training_flops(model.module, about.shape),
        "placement": PLACEMENTS.get(config.composition.images, "P1"),
        "weights_bytes": size * model.weights.element_size(),
        "upload_bytes": transforms.upload_bytes(config, size, model.parameters),
        **secured,  # masked integers, which no transform makes smaller
    }


def has_known_costs(config: Config) -> bool:
    """Return whether what generates the images can be counted: a user's function cannot."""
    return not config.generates or not is_function(config.generation.checkpoint)


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
    clients that declined. The costs of a user's generator are unknown, and 0. Raises UserError.
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
    generated = reader.read_columns(file, "generated", ["round", "cell", "fidelity"])
    shared = reader.read_array(file, "partition/shared_labels")
    fields = model_fields(config, datasets.describe(config.data))
    passes = [
        _refining_passes(config, len(clients), images)
        for clients, images in zip(by_round["client"], rounds["images_used"].tolist())
    ]
    return Trace(
        **fields,
        **(generator_fields(config) if has_known_costs(config) else {}),
        cohorts=by_round["client"],
        samples=by_round["samples"],
        epochs=by_round["epochs"],
        made=by_round["images"] if config.fills else None,
        new_images=np.array([(generated["round"] == round).sum() for round in rounds["round"]]),
        pool=rounds["images_used"],
        missing=(count_held_labels(file, config) == 0).mean(1),
        value=label_value(shared, earth_movers_distance(shared)),
        refine_flops=np.array(passes) * fields["sample_flops"] / refinements.PASSES_OF_TRAINING,
        tiers=_tiers(config, generated, rounds["round"]),
    ), members


def _tiers(config: Config, generated: dict[str, np.ndarray], rounds: np.ndarray) -> Tiers | None:
    """Return what edge servers did. generated: columns of /generated; rounds: int (rounds,), numbers."""
    if config.time.driver != "tiers":
        return None
    if config.time.generators == "cloud":
        return Tiers(config.time.cloud_every)
    here = generated["cell"][:, None] == np.arange(config.cells)  # (images, cells)
    used = here & ~(generated["fidelity"] < config.generation.min_fidelity)[:, None]
    return Tiers(
        config.time.cloud_every,
        np.array([here[generated["round"] == round].sum(0) for round in rounds]),
        np.array([used[generated["round"] <= round].sum(0) for round in rounds]),
    )


def _refining_passes(config: Config, models: int, images: int) -> float:
    """Return how often the server evaluates the network for a sample in a round, after Eq. (1).

    models: of clients; images: of the server. What the user's functions do is not counted, nor a generator's
    FLOPs in algorithms that train one.
    """
    name = config.algorithm.name
    known = algorithms.ALGORITHMS.get(name)  # the run's own algorithm may not be importable here
    own = known.server_passes(config, models) if known else 0.0
    return own + refinements.passes(config, models, images)


def count_held_labels(file: h5py.File, config: Config) -> np.ndarray:
    """Count every client's real samples of each label, including the shared ones: int (clients, classes)."""
    histograms = reader.read_array(file, "partition/label_histograms")
    return histograms + public.class_counts(config.data.shared, histograms.shape[1])
