"""The asynchronous driver: updates enter the model one by one, in buffers, or at fixed times.

`edge.events` knows in advance which client starts from which version of the model and which round aggregates
it. So the ranks train in whatever order is fastest: a rank that has finished its part of a round trains
clients of later rounds, from any version that it already has. A round has one non-blocking broadcast of the
new version and one non-blocking reduction of the updates.

With c_n of round v + 1's updates, each trained from version u_n:

    fedasync    omega^{v+1} = (1 - c) omega^v + c omega_n                       c = alpha s(tau)
    others      omega^{v+1} = omega^v + sum_n c_n (omega_n - omega^{u_n})       c_n = eta s(tau_n) / K

s(tau) = (1 + tau)^-a, tau = v - u. Both are sums of models, and the clients' part is the exact sum of the
synchronous round: fedbuff with equal times, the whole cohort as buffer and eta = 1 is FedAvg with uniform
rho, to the bit. BatchNorm statistics are averaged as values, with the weights c_n / sum c, and moved by
min(1, sum c).

Images and the augmented model arrive at a virtual time of their own. If omega_a was trained from version u,
it enters as the update that it learned, with less weight:

    omega^{v+1} = kappa1 omega_fl + kappa2 (omega^v + omega_a - omega^u),    kappa2 = s(v - u) kappa2(policy)

which is Eq. (1) if it is not stale. Rounds in which no omega_a arrives have kappa2 = 0.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from genfl_mpi.edge.attendance import AGGREGATED, NOT_FINITE, STATUS_DTYPE
from genfl_mpi.edge.events import SERVER, Clock, Events, read_trace, simulate, staleness_weight
from genfl_mpi.federation.algorithms.interface import Array
from genfl_mpi.federation.augmentation import augment
from genfl_mpi.federation.messages import HEAD, MODEL, Broadcast, Reduction
from genfl_mpi.federation.parts import Messages
from genfl_mpi.federation.policies import UNSET
from genfl_mpi.federation.records import Record, Round, client_columns, of_clocks, rank_columns
from genfl_mpi.federation.round import weighted_sum
from genfl_mpi.federation.secure_aggregation import NOT_SECURED
from genfl_mpi.federation.trials import Trials
from genfl_mpi.learning.evaluation import accuracy_over_clients
from genfl_mpi.learning.weights import check_sum
from genfl_mpi.mpi import collectives, staging
from genfl_mpi.mpi.schedule import Balance
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError, annotate_errors
from genfl_mpi.util.timing import Clock as Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genfl_mpi.config.sections.time import Time
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.parts import Parts
    from genfl_mpi.federation.server import Server
    from genfl_mpi.mpi.collectives import MPI

TEST = "test"  # the sum of the ranks' shares of the test
PATIENCE = 0.1  # of an update's mean seconds: how long a rank waits for a message before it trains ahead


def plan_events(config: Config, server: Server) -> Events:
    """Compute the events of a run. On rank 0, before its first round. Raises UserError."""
    settings = config.time
    if settings.trace is not None:
        trace = read_trace(settings.trace, config.clients)
        by_trace = (trace["client"] == SERVER).any()
        if not config.augments:
            trace = trace[trace["client"] != SERVER]
        serve = (lambda version: 0.0) if config.augments and not by_trace else None
        clock = Clock(config.clients, UNSET, UNSET, serve, trace)
        return simulate(settings, config.cohort, config.rounds, clock)
    world = server.world
    assert world is not None
    concurrency = settings.concurrency or config.cohort

    def choose(version: int, draw: int, idle: np.ndarray, count: int) -> np.ndarray:
        key = (version, draw) if draw else (version,)
        rng = streams.generator(config.seed, "cohort", *key)
        return idle[rng.choice(len(idle), count, replace=False, shuffle=False)]

    def seconds(version: int, ids: np.ndarray) -> np.ndarray:
        return world.seconds_in_flight(version, concurrency)[ids]

    serve = server.planned_service() if config.augments else None
    return simulate(settings, config.cohort, config.rounds, Clock(config.clients, seconds, choose, serve))


def coefficients(settings: Time, staleness: np.ndarray) -> np.ndarray:
    """Return c_n of the updates of a round, float64 (K,). staleness: int (K,)."""
    weights = np.asarray(staleness_weight(staleness, settings.power), dtype=np.float64)
    if settings.driver == "fedasync":
        return settings.mixing * weights
    return settings.server_lr * weights / max(len(weights), 1)


def combine(
    settings: Time,
    total: torch.Tensor,
    begun: np.ndarray,
    version: int,
    versions: dict[int, torch.Tensor],
    parameters: int,
) -> torch.Tensor:
    """Return omega_fl, float64 (size,), from the sum of the updates.

    total: float64 (size,), sum c_n omega_n with the `coefficients` of these updates. begun: int (K,), the
    versions that they started from. versions: {version: float32 (size,)}. version: the newest.
    """
    staleness, omega = version - begun, versions[version].double()
    weights = np.asarray(staleness_weight(staleness, settings.power))
    if settings.driver == "fedasync":
        moved = float(settings.mixing * weights[0])
        others = {version: 1 - moved}
    else:
        # Sums before the division: without staleness the sum of all c_n is exactly eta.
        shares = {u: settings.server_lr * (weights[begun == u].sum() / len(begun)) for u in np.unique(begun)}
        moved = settings.server_lr * (weights.sum() / len(begun))
        others = {u: -share for u, share in shares.items()}
        others[version] = 1 - shares.get(version, 0.0)
    model = total[:parameters]
    for u, factor in others.items():
        if factor:
            model = model + factor * versions[int(u)][:parameters].double()
    part = min(1.0, moved)
    statistics = total[parameters:] * (part / moved)
    if part < 1:
        statistics = statistics + (1 - part) * omega[parameters:]
    return torch.cat([model, statistics])


class _Version:
    """The broadcast of a version: its weights, the previous version's test, and who trains what from it.

    ranks: int32, of the updates that start from it, in the order of `_starting`.
    """

    def __init__(self, size: int, classes: int, starts: int, device: torch.device) -> None:
        widths = [-(-size // 2) * 8, HEAD.itemsize, 8 * (classes + 1)]
        self.buffer = staging.zeros(sum(widths) + 4 * starts, np.uint8, device)
        parts = np.split(self.buffer, np.cumsum(widths))
        self.weights = torch.from_numpy(parts[0].view(np.float32)[:size])
        self.head, self.test = parts[1].view(HEAD)[0], parts[2].view(np.int64)
        self.ranks = parts[3].view(np.int32)


class _Work(NamedTuple):
    """An update to train: the round that aggregates it, its place among that round's, and its version."""

    round: int
    place: int
    begun: int


def _starting(events: Events, version: int, first: int, last: int) -> list[_Work]:
    """Return the updates to be trained from a version on; with the first version also those under way.

    last: the last round.
    """
    updates = events.updates[events.updates["round"] <= last]
    is_due = (updates["begun"] == version) & (updates["round"] > version)
    if version == first:
        is_due = (updates["begun"] <= version) & (updates["round"] > version)
    found = []
    for round in np.unique(updates["round"][is_due]).tolist():
        begun = events.of_round(round)["begun"]
        places = np.flatnonzero(begun <= version if version == first else begun == version)
        found += [_Work(round, place, int(begun[place])) for place in places.tolist()]
    return found


class _Rank:
    """What a rank keeps: versions of the model, sums of coming rounds, and the updates that it is to train.

    versions: {version: float32 (size,)} on the device. todo: `_Work`, in the order in which it is needed.
    mean_seconds: of an update, a moving average.
    """

    def __init__(self, parts: Parts, events: Events) -> None:
        self.parts, self.events, self.comm, self.config = parts, events, parts.comm, parts.config
        self.resident = parts.messages.resident
        self.size, self.classes = len(parts.worker.model.weights), len(parts.worker.dataset.about.classes)
        self.versions: dict[int, torch.Tensor] = {}
        self.sums: dict[int, Messages] = {}
        self.todo: list[_Work] = []
        self.train_seconds = self.idle_seconds = self.mean_seconds = 0.0
        self.clock = Stopwatch(parts.note)

    def sums_of(self, round: int) -> Messages:
        """Return the plan and the sums of a round."""
        if round not in self.sums:
            updates = self.events.of_round(round)
            declared = {TEST: Array((self.classes + 1,), "sum", 0)}
            reduction = Reduction(self.size, len(updates), self.comm.size, declared)
            broadcast = Broadcast(0, len(updates), {})
            broadcast.plan["client"] = updates["client"]
            broadcast.plan["epochs"] = self.config.training.epochs
            broadcast.plan["rho"] = coefficients(self.config.time, round - 1 - updates["begun"])
            resident = self.resident.with_sums(reduction, declared)
            self.sums[round] = Messages(broadcast, reduction, resident)
        return self.sums[round]

    def accept(self, version: int, weights: torch.Tensor, works: list[_Work], ranks: list[int]) -> None:
        """Keep a version, drop those that are no longer needed, and take this rank's part of the updates."""
        live = self.events.live_versions(version)
        self.versions = {u: model for u, model in self.versions.items() if u in live}
        self.versions[version] = weights.to(self.resident.device, copy=True)
        self.todo = sorted(
            [*self.todo, *(work for work, rank in zip(works, ranks) if rank == self.comm.rank)]
        )
        self.clock = Stopwatch(self.parts.note)

    def train_next(self, last: int | None = None) -> bool:
        """Train the next update, if there is one. last: only up to this round. Returns whether it did."""
        if not self.todo or self.parts.leaving() or (last is not None and self.todo[0].round > last):
            return False
        work = self.todo.pop(0)
        messages, start = self.sums_of(work.round), self.clock.now()
        messages.resident.omega = self.versions[work.begun]
        self.parts.note("train", int(messages.broadcast.plan["client"][work.place]), done=0, of=1)
        with annotate_errors(f"round {work.round}"):
            self.parts.worker.train_member(messages, work.place, work.begun, self.clock)
        seconds = self.clock.now() - start
        self.train_seconds += seconds
        self.mean_seconds += (seconds - self.mean_seconds) / 8
        return True

    def close_round(self, round: int) -> Messages:
        """Return the message of a round whose updates this rank has trained, and forget the round."""
        messages = self.sums_of(round)
        del self.sums[round]
        messages.resident.collect()
        spent = self.train_seconds, self.idle_seconds
        messages.reduction.ranks[self.comm.rank] = *spent, self.parts.leaving(), 0.0
        self.train_seconds = self.idle_seconds = 0.0
        return messages

    def wait(self, request: Any) -> None:
        """Wait for a message; train clients of later rounds if it does not arrive soon.

        Without patience every wait would train one more client than versions bring, until nothing is left to
        train ahead and the ranks wait for each other's single clients.
        """
        start, patience = time.perf_counter(), PATIENCE * self.mean_seconds

        def train() -> bool:
            return time.perf_counter() - start > patience and self.train_next()

        self.idle_seconds += collectives.wait_for(request, train).idle_seconds
        self.parts.note("wait")


def rounds(parts: Parts, events: Events, t: int) -> Iterator[Record]:
    """Compute the rounds after `t` finished ones, until the ranks are asked to leave. Collective.

    events: of `plan_events`. Yields the `Record` of each round after its test, which is part of the next
    reduction.
    """
    comm, config, server, *_ = parts
    evaluator = parts.recorder.evaluator
    omega, head = torch.from_numpy(parts.messages.broadcast.weights), parts.messages.broadcast.head
    rank, starting = _Rank(parts, events), partial(_starting, events, first=t, last=config.rounds)
    most = max(len(starting(version)) for version in range(t, config.rounds + 1))
    message = _Version(rank.size, rank.classes, most, rank.resident.device)
    _share_versions(comm, rank, server, message, t)
    message.weights.copy_(omega)
    balance = Balance(server.pace) if server else None
    this: Round | None = None  # on rank 0 the last round, until its test
    for v in range(t, config.rounds + 2):
        # III-A: version v, who trains from it, and the test of the version before
        works = starting(v) if v <= config.rounds else []
        if server and balance:
            clients = [events.of_round(work.round)["client"][work.place] for work in works]
            units = server.samples[np.array(clients, dtype=np.int64)] * config.training.epochs
            message.ranks[: len(works)] = balance.assign(units)
            rank.accept(v, message.weights, works, message.ranks.tolist())
        rank.wait(collectives.start_broadcast(comm, message.buffer))
        head["leave"] = message.head["leave"]
        if not server and v > t + 1:
            yield Record(v - 1, *evaluator.summarise(message.test))
        if v > config.rounds or head["leave"]:
            return
        omega.copy_(message.weights)
        if not server:
            rank.accept(v, message.weights, works, message.ranks.tolist())
        parts.note("begin", round=v + 1)
        # III-B, III-C: the server's images and model, this round's clients, and the test of version v
        this_next = Round(v, rank.clock)
        with annotate_errors(f"round {v + 1}"):
            if server:
                _serve(this_next, rank, server, events)
            while rank.train_next(v + 1):
                pass
            with rank.clock("evaluate"):
                rank.sums_of(v + 1).reduction.sums[TEST][...] = evaluator.count(rank.versions[v], "test")[:-1]
            # III-D: the exact sum, while clients of later rounds are trained
            messages = rank.close_round(v + 1)
        rank.wait(collectives.start_reduce(comm, messages.reduction.buffer))
        if not (server and balance):
            continue
        server.versions = {u: rank.versions[u].cpu() for u in events.live_versions(v) - {v}}
        message.test[...] = messages.reduction.sums[TEST]
        message.head["leave"] = int(messages.reduction.rank_column("leave").max())
        if this:
            yield _record(this, message, parts, events)
        if v < config.rounds and not message.head["leave"]:
            with annotate_errors(f"round {v + 1}"):
                this = this_next
                message.weights.copy_(_aggregate(this, parts, rank, server, events, messages))
                _note(this, parts, rank, server, events, messages, message)
                clients = this.tables["clients"]
                units = clients["samples"] * clients["epochs"]
                balance.measure(units, clients["seconds"], clients["rank"].astype(int))
                balance.seconds[0] += rank.clock.seconds.get("augment", 0.0)


def _share_versions(comm: MPI.Comm, rank: _Rank, server: Server | None, message: _Version, t: int) -> None:
    """Broadcast the versions from before a restart that clients under way started from. Collective.

    Raises UserError on every rank if the checkpoint lacks one.
    """
    wanted = sorted(rank.events.live_versions(t) - {t})

    def check() -> None:
        if server and (missing := set(wanted) - set(server.versions)):
            raise UserError(
                f"the run cannot continue after round {t}: the weights of rounds "
                f"{', '.join(map(str, sorted(missing)))}, from which clients started, are not in a "
                "checkpoint; start over with --fresh"
            )

    collectives.call_on_all(comm, check)
    for version in wanted:
        if server:
            message.weights.copy_(server.versions[version])
        collectives.broadcast(comm, message.buffer)
        rank.versions[version] = message.weights.to(rank.resident.device, copy=True)


def _serve(this: Round, rank: _Rank, server: Server, events: Events) -> None:
    """Make the images and train the augmented model that enter the next aggregation, if any do."""
    job, leaving = events.augmented(this.t + 1), rank.parts.leaving
    if job is None:
        return
    server.begin(int(job["begun"]))
    with this.clock("generate"):
        this.made, this.interrupted = server.images.make(server.state, leaving, rank.parts.note)
    if this.interrupted or leaving():
        return
    with this.clock("augment"):
        config, begun = rank.config, int(job["begun"])
        this.omega_a, this.augmented = augment(
            rank.parts.worker.model,
            rank.versions[begun],
            server.images,
            config.augmented,
            config.seed,
            begun,
        )


def _aggregate(
    this: Round, parts: Parts, rank: _Rank, server: Server, events: Events, messages: Messages
) -> torch.Tensor:
    """Return the next version, float64 (size,), from the reduced sum and the augmented model."""
    plan, reduction, updates = messages.broadcast.plan, messages.reduction, events.of_round(this.t + 1)
    time, parameters, v = parts.config.time, parts.worker.model.parameters, this.t
    versions = {u: model.cpu() for u, model in rank.versions.items()}
    check_sum(plan["rho"], reduction.client_column("largest_weight"))
    kept = np.isfinite(reduction.client_column("update_norm"))
    status = np.where(kept, AGGREGATED, NOT_FINITE).astype(STATUS_DTYPE)
    before, plan["rho"] = plan["rho"][kept].sum(), 0.0
    omega_fl = versions[v].double()
    if kept.any():
        begun, total = updates["begun"][kept], messages.resident.received()[MODEL]
        plan["rho"][kept] = coefficients(time, v - begun)
        if not kept.all():  # the others share the weight; the proportions stay
            total = total * (plan["rho"].sum() / before)
        omega_fl = this.average = combine(time, total, begun, v, versions, parameters)
    this.omega_fl = omega_fl
    server.receive(v, plan, status)
    if this.omega_a is not None:
        begun = int(events.augmented(v + 1)["begun"])  # type: ignore[index]
        if begun < v:
            moved = versions[v][:parameters] + (this.omega_a - versions[begun])[:parameters]
            this.omega_a = torch.cat([moved, this.omega_a[parameters:]])
        kappa2, _ = server.kappa2(versions[v], omega_fl, this.omega_a, parameters, Trials(UNSET))
        this.kappa2 = kappa2 * float(staleness_weight(v - begun, time.power))
    return weighted_sum((1 - this.kappa2, omega_fl), (this.kappa2, this.omega_a), versions[v])


def _note(
    this: Round,
    parts: Parts,
    rank: _Rank,
    server: Server,
    events: Events,
    messages: Messages,
    message: _Version,
) -> None:
    """Store a round in its tables."""
    number, updates = this.t + 1, events.of_round(this.t + 1)
    clients = client_columns(messages.reduction, messages.broadcast.plan, number, server.status)
    clients |= {"images": np.zeros(len(updates)), "share": np.zeros(len(updates))}
    clients["staleness"] = this.t - updates["begun"]
    made = np.zeros((len(updates), rank.classes), dtype=np.int64)
    columns = parts.recorder.columns(this, server, clients, made, rank.versions[this.t].cpu())
    nothing = collectives.Waiting(0.0, 0.0)
    columns |= of_clocks(this.clock, nothing, messages.broadcast, messages.reduction, 0, 0)
    columns |= NOT_SECURED | {
        "virtual_seconds": events.seconds[this.t],
        "broadcast_bytes": message.buffer.nbytes,
    }
    this.tables = {
        "columns": columns,
        "clients": clients,
        "ranks": rank_columns(messages.reduction, number),
        "generated": this.made,
    }


def _record(this: Round, message: _Version, parts: Parts, events: Events) -> Record:
    """Return the `Record` of a round whose version has been tested. On rank 0."""
    measured = parts.recorder.evaluator.summarise(message.test)
    this.tables["columns"] |= accuracy_over_clients(measured[2], parts.recorder.data["label_histograms"])
    return Record(this.t + 1, *measured, **this.tables)
