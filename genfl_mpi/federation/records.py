"""What a round leaves behind: its record, of which the results file gets its rows."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.edge.attendance import AGGREGATED
from genfl_mpi.federation import hindsight
from genfl_mpi.federation.messages import CLIENT_FIELDS, NO_RANK
from genfl_mpi.federation.participation import payments
from genfl_mpi.learning.evaluation import accuracy_over_clients
from genfl_mpi.learning.geometry import cosine, distance, mean_cosine


@dataclass(frozen=True)
class Record:
    """What a round leaves behind: the global model's test figures on every rank, the rest on rank 0 (elsewhere empty).

    accuracy_per_class: float64 (classes,). columns: the other numbers of the results' /rounds. clients, ranks: columns of
    /clients and /ranks, arrays (cohort,) and (ranks,). generated: a `server_images.Made` for each batch of this round. laboratory,
    audit: columns of /hindsight and /audit, empty if they are not due. probes: columns of /probes and /probed_clients by table,
    empty if there was no probe.
    """

    round: int
    accuracy: float
    loss: float
    accuracy_per_class: np.ndarray
    columns: dict = field(default_factory=dict)
    clients: dict = field(default_factory=dict)
    ranks: dict = field(default_factory=dict)
    generated: list = field(default_factory=list)
    hindsight: dict = field(default_factory=dict)
    audit: dict = field(default_factory=dict)
    probes: dict = field(default_factory=dict)


@dataclass
class Round:
    """A round while it is computed. t: 0 is the first. made: a `Made` for each batch of images; average: the mean of the clients' models; augmented: the `Report` of omega_a's
    training; asked: the `ServerState` of which the kappa policy was asked, or None; waiting: `collectives.Waiting`; tables: what the
    `Record` gets, by its fields. All but t, clock and waiting on rank 0 alone."""

    t: int
    clock: Any
    made: list = field(default_factory=list)
    omega_a: Any = None
    average: Any = None
    omega_fl: Any = None
    augmented: Any = None
    kappa2: float = 0.0
    asked: Any = None
    waiting: Any = None
    tables: dict = field(default_factory=dict)


def note(parts, this, omega, trials):
    """Note what is known of a complete round on rank 0, before its weights are replaced: in its tables, and in the server's memory. parts:
    `round.Parts`; omega: float32 (size,), the weights before the round."""
    config, server, data, images, reduction = (
        parts.config,
        parts.server,
        parts.data,
        parts.client_images,
        parts.reduction,
    )
    clients, number = of_clients(reduction, parts.message.plan, this.t + 1, server.status), this.t + 1
    made = images.generated(clients["client"])
    clients["images"], clients["share"] = made.sum(1), images.share(clients["client"])
    owed = server.world.owed[clients["client"]] if server.world else 0.0
    pay = of_pay(config, clients["status"], number, server.state.available, data["told"].sum(), owed)
    server.note(clients)
    trained = clients["rank"] != NO_RANK
    samples, seconds, rank = (clients[name][trained] for name in ("samples", "seconds", "rank"))
    server.pace.measure(samples * clients["epochs"][trained], seconds, rank.astype(int))
    if this.augmented:  # by the same trainer on rank 0
        server.pace.speeds[0].measure(
            this.augmented.samples * config.augmented.epochs, this.clock.seconds["augment"]
        )
    this.tables["columns"] = {
        "kappa1": 1 - this.kappa2,
        "kappa2": this.kappa2,
        "images": server.state.generated.sum(),
        "images_used": len(server.images),
        "augmented_loss": this.augmented.loss_last_epoch if this.augmented else np.nan,
        **pay,
        **of_cohort(images.real(clients["client"]) + made, data["label_histograms"]),
        **of_models(clients, omega, this.average, this.omega_a, parts.worker.model.parameters),
    }
    if this.asked and hindsight.is_due(config, number):
        this.tables["hindsight"] = hindsight.look(
            this.asked, server.kappa_policy.__name__, this.kappa2, trials.test
        )
    this.tables |= {
        "clients": clients,
        "ranks": of_ranks(reduction, number),
        "audit": of_audit(reduction, clients),
        "generated": this.made,
    }


def of_round(parts, this, accuracy, loss, accuracy_per_class, probed):
    """The `Record` of a complete round, once its weights were evaluated."""
    if parts.server:
        this.tables["columns"] |= of_clocks(
            this.clock, this.waiting, parts.message, parts.reduction, parts.client_images.bytes
        )
        this.tables["columns"] |= accuracy_over_clients(accuracy_per_class, parts.data["label_histograms"])
    return Record(this.t + 1, accuracy, loss, accuracy_per_class, probes=probed, **this.tables)


def of_clients(reduction, plan, round, status):
    """Columns of /clients after a round, from the `Reduction` message as reduced, the plan of the `Broadcast` message, and the status of who
    was heard and who was not."""
    clients = dict(zip(CLIENT_FIELDS, reduction.clients.T.copy()))
    del clients["largest_weight"]
    return (
        clients
        | {"status": status}
        | {name: plan[name].copy() for name in ("client", "rho", "epochs")}
        | {"round": np.full(len(plan), round)}
    )


def of_audit(reduction, clients):
    """Columns of /audit after a round, from the `Reduction` message as reduced and the columns of /clients: of who was heard."""
    if not reduction.outputs.size:
        return {}
    heard = clients["status"] == AGGREGATED
    return {name: clients[name][heard] for name in ("round", "client")} | {
        "bias_change": reduction.outputs[heard]
    }


def of_ranks(reduction, round):
    """Columns of /ranks after a round, from the `Reduction` message as reduced."""
    seconds = {name: reduction.of_ranks(name).copy() for name in ("train_seconds", "wait_seconds")}
    return {"round": np.full(len(reduction.ranks), round), "rank": np.arange(len(reduction.ranks)), **seconds}


def of_cohort(held, histograms):
    """Columns of /rounds on how the data differ on which the cohort trains. held: int (K, classes), samples of each label with
    generated ones; histograms: int (clients, classes), of all clients' own."""
    if not len(held):
        return {"cohort_emd": np.nan, "clients_emd": np.nan, "cohort_labels": 0}
    pooled, population = held.sum(0), histograms.sum(0)
    return {
        "cohort_emd": earth_movers_distance(pooled[None], population)[0],
        "cohort_labels": np.count_nonzero(pooled),
        "clients_emd": np.average(earth_movers_distance(held, population), weights=held.sum(1)),
    }


def of_models(clients, omega_t, omega_fl, omega_a, parameters):
    """Columns of /rounds on how the clients trained, and how their models' changes and the augmented one's agree.

    clients: columns of /clients; omega_t, omega_fl, omega_a: the weights before the round, of the clients' average, and of the
    augmented model, (size,), with the parameters first; None for what there is not.
    """
    counted = clients["rho"] > 0  # without those that were dropped
    rho, norms, both = (
        clients["rho"][counted],
        clients["update_norm"][counted],
        omega_fl is not None and omega_a is not None,
    )
    trained = omega_fl is not None
    change = distance(omega_fl, omega_t, parameters) if trained else np.nan
    return {
        "update_cosine": mean_cosine(rho, norms, change) if trained else np.nan,
        "update_alignment": change / (rho @ norms) if trained and rho @ norms > 0 else np.nan,
        "augmented_cosine": cosine(omega_fl, omega_a, omega_t, parameters) if both else np.nan,
        "clients_trained": len(clients["client"]),
        "clients_aggregated": (clients["status"] == AGGREGATED).sum() if len(clients["client"]) else 0,
        **{
            name: rho @ clients[column][counted] / rho.sum() if trained else np.nan
            for name, column in (("train_loss", "loss_last_epoch"), ("train_accuracy", "accuracy_last_epoch"))
        },
    }


def of_pay(config, status, round, available, told, owed):
    """Columns of /rounds on who takes part for the pay. status: of the cohort; available: bool (clients,), or None if all are; told,
    owed: as in `payments`."""
    return {
        "clients_available": config.clients if available is None else available.sum(),
        "payments": payments(config, status, round, told, owed),
    }


def of_clocks(clock, waiting, message, reduction, sent):
    """Columns of /rounds: rank 0's clock, and the ranks' times and the bytes of the two messages. sent: bytes of images from rank 0
    to every rank."""
    return {
        "round_seconds": clock.now(),
        "generate_start_seconds": clock.starts.get("generate", np.nan),
        **{
            f"{phase}_seconds": clock.seconds.get(phase, 0.0)
            for phase in ("generate", "augment", "send", "reduce", "broadcast", "evaluate")
        },
        "generate_ahead_seconds": waiting.working_seconds,
        "train_seconds": reduction.of_ranks("train_seconds").max(),
        "wait_seconds": reduction.of_ranks("wait_seconds").mean(),
        "broadcast_bytes": message.buffer.nbytes + sent,
        "reduce_bytes": reduction.buffer.nbytes,
    }
