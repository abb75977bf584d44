"""Sections of what is measured: tests, probes, calibration, policies in hindsight."""

from typing import Annotated, Literal

from pydantic import Field

from genfl_mpi.config.sections.conditions import DUE
from genfl_mpi.config.types import Count, Epochs, Natural, Needs, Positive, Section, at_most


class Hindsight(Section):
    """Test models between the round's two models, without effect on the run."""

    every: Annotated[Count | None, DUE] = Field(
        None, description="rounds between two evaluations; null: never"
    )
    points: Annotated[
        Count,
        Field(ge=2),
        at_most(10_000, "each is a model that is evaluated on the whole test set"),
        Needs("hindsight.every", lambda _, hindsight: hindsight.every is not None),
    ] = Field(11, description="models evaluated along the segment, including both ends")
    policies: Annotated[
        list[str], Needs("hindsight.every", lambda _, hindsight: hindsight.every is not None)
    ] = Field(
        [],
        description="kappa policies to evaluate in addition to the run's; "
        "an empty list: all that this configuration supports",
    )


CALIBRATED = Needs("calibration.every", lambda _, calibration: calibration.every is not None)


class Calibration(Section):
    """Test the model with a calibrated output layer (CCVR), into /calibrated, without effect on the run."""

    every: Annotated[Count | None, DUE] = Field(
        None, description="rounds between two calibrations; null: never"
    )
    moments: Annotated[Literal["clients", "images", "both"], CALIBRATED] = Field(
        "clients",
        description="whose features' means and covariances are used; clients: of all clients' private data; "
        "images: of the server's images; both: of both together",
    )
    features: Annotated[Count, at_most(100_000, "those of all classes are in memory at once"), CALIBRATED] = (
        Field(1000, description="features drawn of each class, to train the output layer")
    )
    epochs: Annotated[Epochs, CALIBRATED] = Field(10, description="passes over them")
    batch_size: Annotated[Count, CALIBRATED] = Field(64, description="features per SGD step")
    lr: Annotated[Positive, CALIBRATED] = Field(0.01, description="learning rate, with momentum 0.9")


class Probes(Section):
    """Measure how the clients differ, into /probes and /probed_clients, without effect on the run."""

    every: Annotated[Count | None, DUE] = Field(
        None, description="rounds between two measurements; null: never"
    )
    clients: Annotated[Count, Needs("probes.every", lambda _, probes: probes.every is not None)] = Field(
        100,
        description="clients, drawn once, whose gradients represent all clients in F; "
        "all clients if the run has fewer",
    )
    epochs: Annotated[Epochs, Needs("probes.every", lambda _, probes: probes.every is not None)] = Field(
        20,
        description="additional passes over a client's data after which its loss counts as the minimum, "
        "F_n(w_n*)",
    )


class Evaluation(Section):
    """Evaluation of the global model on the test set."""

    every: Count = Field(
        1,
        description="rounds between two evaluations on the whole test set; `rounds` must be a multiple of it",
    )
    subset: Annotated[Natural, Needs(".every above 1", lambda _, evaluation: evaluation.every > 1)] = Field(
        0,
        description="test samples, drawn once and the same for all seeds, that are evaluated in every round, "
        "for the progress between two evaluations; 0: none",
    )
    batch_size: Count = Field(
        100,
        description="test samples per chunk, which should fit in the cache; chunks are divided over the "
        "ranks",
    )
