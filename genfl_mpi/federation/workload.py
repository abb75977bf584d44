"""What is priced of a run: the `Trace` in a results file, and what of it the configuration alone decides."""

import numpy as np

from genfl_mpi.data import datasets, public
from genfl_mpi.edge.attendance import DECLINED
from genfl_mpi.edge.trace import Trace, value_of_labels
from genfl_mpi.generation.image_flops import of_configured
from genfl_mpi.learning import models
from genfl_mpi.learning.flops import of_training
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.results import reader

HALF = 2  # bytes of a generator's weight, which is sent in half precision
PLACEMENTS = {"sent": "P2", "made": "P3"}  # of images that clients train on; P1 is of the others


def of_model(config, about):
    """What a `Trace` has of the model, whatever the rounds. about: the data set's `Description`."""
    model = FlatModel(models.build(config.model, len(about.classes), about.shape, 0))
    return {
        "clients": config.clients,
        "augmented_epochs": config.augmented.epochs,
        "shape": about.shape,
        "sample_flops": of_training(model.module, about.shape),
        "placement": PLACEMENTS.get(config.composition.images, "P1"),
        "weights_bytes": model.weights.numel() * model.weights.element_size(),
    }


def of_generator(config):
    """What a `Trace` has of the generator. Raises UserError if that is a function, of which nobody knows the costs."""
    if not config.generates:
        return {}
    maker = of_configured(config.generation)
    return {"image_flops": maker.image, "generator_bytes": HALF * maker.weights}


def of_file(file, config):
    """(the `Trace` in an open results file, as if its configuration were `config`; the rows in /clients of each round's cohort,
    bool (rows,) each, without those who declined). Raises UserError."""
    rounds = reader.columns_of(file, "rounds", ("round", "images_used"))
    clients = reader.columns_of(file, "clients", ("round", "client", "samples", "images", "epochs", "status"))
    members = [(clients["status"] != DECLINED) & (clients["round"] == round) for round in rounds["round"]]
    # The epochs that method=matched adds stay as they were.
    clients["epochs"] = (
        clients["epochs"] + config.training.epochs - reader.config_of(file)["training"]["epochs"]
    )
    clients["samples"] = clients["samples"] - clients["images"]
    of_round = {name: [column[rows] for rows in members] for name, column in clients.items()}
    made_in = reader.columns_of(file, "generated", ["round"])["round"]
    return Trace(
        **of_model(config, datasets.describe(config.data)),
        **of_generator(config),
        cohorts=of_round["client"],
        samples=of_round["samples"],
        epochs=of_round["epochs"],
        made=of_round["images"] if config.fills else None,
        new_images=np.array([(made_in == round).sum() for round in rounds["round"]]),
        pool=rounds["images_used"],
        missing=(held(file, config) == 0).mean(1),
        value=value_of_labels(reader.array_of(file, "partition/shared_labels")),
    ), members


def held(file, config):
    """Real samples of each label that every client of an open results file has, with the shared ones: int (clients, classes)."""
    histograms = reader.array_of(file, "partition/label_histograms")
    return histograms + public.counts(config.data.shared, histograms.shape[1])
