"""What a round leaves behind: the record from which its rows in the results file are written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.edge.attendance import AGGREGATED
from genfl_mpi.federation import hindsight
from genfl_mpi.federation.differential_privacy import NOT_PRIVATE
from genfl_mpi.federation.messages import CLIENT_FIELDS, NO_RANK
from genfl_mpi.federation.participation import payments
from genfl_mpi.federation.secure_aggregation import NOT_SECURED
from genfl_mpi.learning.evaluation import accuracy_over_clients
from genfl_mpi.learning.geometry import cosine, distance, mean_cosine
from genfl_mpi.mpi import collectives
from genfl_mpi.util.errors import annotate_errors
from genfl_mpi.util.text import counted, describe_accuracy

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.calibrated_head import CalibratedHead
    from genfl_mpi.federation.client_images import ClientImages
    from genfl_mpi.federation.evaluator import Evaluator
    from genfl_mpi.federation.messages import Broadcast, Reduction
    from genfl_mpi.federation.parts import Messages
    from genfl_mpi.federation.policies import ServerState
    from genfl_mpi.federation.probes import Probes
    from genfl_mpi.federation.server import Server
    from genfl_mpi.federation.server_images import Made
    from genfl_mpi.federation.trials import Trials
    from genfl_mpi.learning.training import Report
    from genfl_mpi.util.timing import Clock


@dataclass(frozen=True, repr=False)
class Record:
    """The results of a round: test accuracy and loss on every rank, the rest on rank 0 alone.

    The other ranks have empty tables. As text it is one line.

    accuracy, loss, accuracy_per_class (float64 (classes,)): NaN in rounds without an evaluation on the whole
    test set; subset_accuracy, subset_loss: on its subset, NaN without one.

    columns: the other columns of /rounds. clients, ranks: columns of /clients and /ranks, arrays (cohort,)
    and (ranks,). generated: a `server_images.Made` for each batch of this round. made_in: the cell of each
    batch, if edge servers make them. hindsight, audit, attacks,
    personal: columns of these tables, empty if not due. probes: columns of /probes, /probed_clients and
    /calibrated by table, empty if not due.
    """

    round: int
    accuracy: float
    loss: float
    accuracy_per_class: np.ndarray
    subset_accuracy: float = np.nan
    subset_loss: float = np.nan
    columns: dict[str, Any] = field(default_factory=dict)
    clients: dict[str, np.ndarray] = field(default_factory=dict)
    ranks: dict[str, np.ndarray] = field(default_factory=dict)
    generated: list[Made] = field(default_factory=list)
    made_in: list[int] = field(default_factory=list)
    hindsight: dict[str, np.ndarray] = field(default_factory=dict)
    audit: dict[str, np.ndarray] = field(default_factory=dict)
    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    attacks: dict[str, np.ndarray] = field(default_factory=dict)
    personal: dict[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        text = f"round {self.round}: {describe_accuracy(self.accuracy, self.subset_accuracy)}"
        if np.isfinite(self.accuracy):
            text += f", loss {self.loss:.3f}"
        if not self.columns:  # on the other ranks
            return text
        aggregated, images = int(self.columns["clients_aggregated"]), int(self.columns["images"])
        return (
            f"{text}, {counted(aggregated, 'client')}, {counted(images, 'image')}, "
            f"kappa2 {self.columns['kappa2']:.2f}, {self.columns['round_seconds']:.2f} s"
        )


@dataclass
class Round:
    """A round while it is computed. All but t, clock and waiting are filled in on rank 0 alone.

    t: 0 is the first. interrupted: whether work was skipped because the ranks were asked to leave. made: a
    `Made` for each batch of images. omega_a: float32 (size,), the augmented model; augmented: the `Report` of
    its training. average: float64 (size,), the mean of the clients' models. omega_fl: float64 (size,), what
    the algorithm makes of it. asked: the `ServerState` that the kappa policy got, or None if it was not
    called. shared: seconds this rank generated its share of the images; shared_until: seconds from the start
    of the round to the end of shared generation. slice_bytes: of the models that rank 0 sent in slices.
    secured: columns of /rounds on secure aggregation. tables: fields of the `Record`, by name.
    """

    t: int
    clock: Clock
    interrupted: bool = False
    made: list[Made] = field(default_factory=list)
    omega_a: torch.Tensor | None = None
    average: torch.Tensor | None = None
    omega_fl: torch.Tensor | None = None
    augmented: Report | None = None
    kappa2: float = 0.0
    asked: ServerState | None = None
    waiting: collectives.Waiting = collectives.Waiting(0.0, 0.0)
    shared: float = 0.0
    shared_until: float = 0.0
    slice_bytes: int = 0
    secured: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)


class Recorder:
    """Measure and record the rounds. Nothing that it does changes the run.

    device: of `devices.describe_models`; data: the run's arrays; parameters: how many of the weights are
    parameters. success: collective function () -> success rate of a backdoor in omega^t, or None. personal:
    collective function (finished rounds) -> columns of /personal, on rank 0.
    """

    def __init__(
        self,
        config: Config,
        device: str,
        data: dict[str, np.ndarray],
        client_images: ClientImages,
        messages: Messages,
        parameters: int,
        probes: Probes,
        calibrated_head: CalibratedHead,
        evaluator: Evaluator,
        success: Callable[[], float] | None,
        personal: Callable[[int], dict[str, np.ndarray]],
    ) -> None:
        self.success, self.personal = success, personal
        self.config, self.device, self.data, self.client_images = config, device, data, client_images
        self.messages, self.parameters, self.probes, self.evaluator = messages, parameters, probes, evaluator
        self.calibrated_head = calibrated_head

    def begin(self, t: int, omega: torch.Tensor) -> None:
        """Prepare the probe of round t, if it is due. omega: float32 (size,), omega^t."""
        self.probes.begin(t, omega, self.messages.broadcast.plan)

    def note(self, this: Round, server: Server, omega: torch.Tensor, trials: Trials) -> None:
        """Store a complete round in its tables and in the server's memory.

        On rank 0, before the weights are replaced. omega: float32 (size,), omega^t.
        """
        reduction, number = self.messages.reduction, this.t + 1
        clients = client_columns(reduction, self.messages.broadcast.plan, number, server.status)
        made = self.client_images.generated(clients["client"])
        clients["images"] = made.sum(1)
        clients["share"] = self.client_images.share(clients["client"])
        this.tables["columns"] = self.columns(this, server, clients, made, omega)
        self._remember(this, server, clients)
        if this.asked and hindsight.is_due(self.config, number):
            this.tables["hindsight"] = hindsight.compare(
                this.asked, server.kappa_policy.__name__, this.kappa2, trials.test
            )
        this.tables |= {
            "clients": clients,
            "ranks": rank_columns(reduction, number),
            "audit": audit_columns(reduction, clients),
            "attacks": attack_columns(self.data["attackers"], clients, number),
            "generated": this.made,
        }

    def record(self, this: Round) -> Record:
        """Evaluate the weights after a complete round, and return its `Record`. Collective."""
        with annotate_errors(f"round {this.t + 1}"):
            with this.clock("evaluate"):
                evaluated = self.evaluator.evaluate(self.messages.resident.omega, this.t + 1)
                success = self.success() if self.success else np.nan
                personal = self.personal(this.t + 1)
            probed = self.probes.measure(this.t + 1, this.average)
            probed |= self.calibrated_head.measure(this.t + 1, self.messages.resident.omega)
            if this.tables:  # on rank 0
                if this.tables["attacks"]:
                    this.tables["attacks"]["success"] = np.array([success])
                this.tables["columns"] |= of_clocks(
                    this.clock,
                    this.waiting,
                    self.messages.broadcast,
                    self.messages.reduction,
                    self.client_images.bytes,
                    this.slice_bytes,
                )
                this.tables["columns"] |= NOT_SECURED | this.secured
                this.tables["columns"] |= accuracy_over_clients(
                    evaluated.accuracy_per_class, self.data["label_histograms"]
                )
            tables: dict[str, Any] = {"probes": probed, "personal": personal, **this.tables}
            return Record(this.t + 1, *evaluated, **tables)

    def columns(
        self,
        this: Round,
        server: Server,
        clients: dict[str, np.ndarray],
        made: np.ndarray,
        omega: torch.Tensor,
    ) -> dict[str, Any]:
        """Return the columns of /rounds that are known before the evaluation.

        made: int (cohort, classes), generated images of each label that the clients trained on.
        """
        who = clients["client"]
        return {
            "kappa1": 1 - this.kappa2,
            "kappa2": this.kappa2,
            "images": server.state.generated.sum(),
            "images_used": len(server.images),
            "images_from_bank": server.images.from_bank,
            "bank_seconds": server.images.bank_seconds,
            "device": self.device,
            "augmented_loss": this.augmented.loss_last_epoch if this.augmented else np.nan,
            "virtual_seconds": np.nan,
            **of_pay(
                self.config,
                clients["status"],
                this.t + 1,
                server.state.available,
                self.data["sharing"].sum(),
                server.world.owed[who] if server.world else 0.0,
            ),
            **(server.private.columns() if server.private else NOT_PRIVATE),
            **cohort_columns(self.client_images.real(who) + made, self.data["label_histograms"]),
            **of_models(clients, omega, this.average, this.omega_a, self.parameters),
        }

    def _remember(self, this: Round, server: Server, clients: dict[str, np.ndarray]) -> None:
        """Update the server's memory of the clients' training and of the ranks' speed."""
        server.note(clients, self.messages.reduction.records)
        trained = clients["rank"] != NO_RANK
        samples, epochs, seconds, rank = (
            clients[name][trained] for name in ("samples", "epochs", "seconds", "rank")
        )
        pace = server.pace
        pace.measure(samples * epochs, seconds, rank.astype(int))
        if this.augmented:  # by the same trainer on rank 0
            pace.speeds[0].measure(
                this.augmented.samples * self.config.augmented.epochs, this.clock.seconds["augment"]
            )


def client_columns(
    reduction: Reduction, plan: np.ndarray, round: int, status: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the columns of /clients after a round.

    reduction: as reduced; plan: of the `Broadcast` message; status: STATUS (cohort,), what became of each
    member.
    """
    clients = dict(zip(CLIENT_FIELDS, reduction.clients.T.copy()))
    del clients["largest_weight"]
    return (
        clients
        | {"status": status}
        | {name: plan[name].copy() for name in ("client", "rho", "epochs")}
        | {"round": np.full(len(plan), round), "staleness": np.zeros(len(plan), dtype=np.int64)}
        | {"cell": np.full(len(plan), -1)}
    )


def audit_columns(reduction: Reduction, clients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns of /audit after a round: a row for each client that was aggregated.

    reduction: as reduced; clients: columns of /clients. Empty if the run is not audited.
    """
    if not reduction.outputs.size:
        return {}
    aggregated = clients["status"] == AGGREGATED
    return {name: clients[name][aggregated] for name in ("round", "client")} | {
        "bias_change": reduction.outputs[aggregated]
    }


def attack_columns(
    attackers: np.ndarray, clients: dict[str, np.ndarray], round: int
) -> dict[str, np.ndarray]:
    """Return the columns of /attacks after a round, without the success; empty in a run without attackers.

    attackers: bool (all clients,); clients: columns of /clients.
    """
    if not attackers.any():
        return {}
    attacking = attackers[clients["client"]]
    counts = {"attackers": attacking.sum(), "attackers_rho": clients["rho"][attacking].sum()}
    return {name: np.array([value]) for name, value in {"round": round, **counts}.items()}


def rank_columns(reduction: Reduction, round: int) -> dict[str, np.ndarray]:
    """Return the columns of /ranks after a round. reduction: as reduced."""
    names = "train_seconds", "wait_seconds", "generating_seconds"
    seconds = {name: reduction.rank_column(name).copy() for name in names}
    return {"round": np.full(len(reduction.ranks), round), "rank": np.arange(len(reduction.ranks)), **seconds}


def cohort_columns(held: np.ndarray, histograms: np.ndarray) -> dict[str, Any]:
    """Return the columns of /rounds on the label skew of the cohort's training data.

    held: int (K, classes), samples of each label, generated ones included; histograms: int (clients,
    classes), the private samples of all clients.
    """
    if not len(held):
        return {"cohort_emd": np.nan, "clients_emd": np.nan, "cohort_labels": 0}
    pooled, population = held.sum(0), histograms.sum(0)
    return {
        "cohort_emd": earth_movers_distance(pooled[None], population)[0],
        "cohort_labels": np.count_nonzero(pooled),
        "clients_emd": np.average(earth_movers_distance(held, population), weights=held.sum(1)),
    }


def of_models(
    clients: dict[str, np.ndarray],
    omega_t: torch.Tensor,
    average: torch.Tensor | None,
    omega_a: torch.Tensor | None,
    parameters: int,
) -> dict[str, Any]:
    """Return the columns of /rounds on the clients' training and on the angles between the models' updates.

    clients: columns of /clients; omega_t, average, omega_a: the weights before the round, the mean of the
    clients' models and the augmented model, (size,), with the parameters first; None for a model that the
    round does not have.
    """
    counted = clients["rho"] > 0  # without dropped clients
    rho, norms = clients["rho"][counted], clients["update_norm"][counted]
    trained = average is not None and bool(counted.any())  # a defence may trust no client
    change = np.nan if average is None else distance(average, omega_t, parameters)
    return {
        "update_cosine": mean_cosine(rho, norms, change) if trained else np.nan,
        "update_alignment": change / (rho @ norms) if trained and rho @ norms > 0 else np.nan,
        "augmented_cosine": np.nan
        if average is None or omega_a is None
        else cosine(average, omega_a, omega_t, parameters),
        "clients_trained": len(clients["client"]),
        "clients_aggregated": (clients["status"] == AGGREGATED).sum() if len(clients["client"]) else 0,
        **{
            name: rho @ clients[column][counted] / rho.sum() if trained else np.nan
            for name, column in (("train_loss", "loss_last_epoch"), ("train_accuracy", "accuracy_last_epoch"))
        },
    }


def of_pay(
    config: Config,
    status: np.ndarray,
    round: int,
    available: np.ndarray | None,
    shared: int,
    owed: np.ndarray | float,
) -> dict[str, Any]:
    """Return the columns of /rounds on participation for pay.

    status: STATUS (cohort,); available: bool (clients,), or None if all are; shared: clients that shared
    their labels; owed: as in `payments`.
    """
    return {
        "clients_available": config.clients if available is None else available.sum(),
        "payments": payments(config, status, round, shared, owed),
    }


def of_clocks(
    clock: Clock,
    waiting: collectives.Waiting,
    broadcast: Broadcast,
    reduction: Reduction,
    sent: int,
    sliced: int,
) -> dict[str, Any]:
    """Return the columns of /rounds on time and traffic.

    sent: bytes of images from rank 0 to every rank; sliced: of models, in slices, from rank 0.
    """
    return {
        "round_seconds": clock.now(),
        "generate_start_seconds": clock.starts.get("generate", np.nan),
        **{
            f"{phase}_seconds": clock.seconds.get(phase, 0.0)
            for phase in (
                "generate",
                "augment",
                "send",
                "reduce",
                "unmask",
                "refine",
                "broadcast",
                "evaluate",
            )
        },
        "generate_ahead_seconds": waiting.working_seconds,
        "train_seconds": reduction.rank_column("train_seconds").max(),
        "wait_seconds": reduction.rank_column("wait_seconds").mean(),
        "broadcast_bytes": broadcast.buffer.nbytes + sent,
        "reduce_bytes": reduction.buffer.nbytes + sliced,
    }
