"""The round of generative federated learning (GenFL): the paper's steps, in the paper's order."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import torch

from genfl_mpi.federation.aggregation import aggregate
from genfl_mpi.federation.augmentation import augment
from genfl_mpi.federation.messages import NO_RANK
from genfl_mpi.federation.records import Round
from genfl_mpi.federation.refining import refine
from genfl_mpi.federation.trials import Trials
from genfl_mpi.mpi import collectives
from genfl_mpi.util.errors import annotate_errors
from genfl_mpi.util.timing import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.client_images import ClientImages
    from genfl_mpi.federation.parts import Messages, Parts
    from genfl_mpi.federation.records import Record
    from genfl_mpi.federation.server import Server
    from genfl_mpi.federation.server_images import ServerImages
    from genfl_mpi.federation.worker import Worker
    from genfl_mpi.learning.weights import FlatModel
    from genfl_mpi.mpi.collectives import MPI


def rounds(parts: Parts, t: int) -> Iterator[Record]:
    """Compute round t (0 is the first) and all later rounds, until the ranks are asked to leave. Collective.

    Yields the `Record` of each round once every rank knows the next cohort. A round that is left before its
    end is discarded.
    """
    comm, config, server, worker, messages, *_ = parts
    resident, parameters = messages.resident, worker.model.parameters
    omega, clock, this = torch.from_numpy(messages.broadcast.weights), Clock(parts.note), None
    while True:
        # III-A: labels were shared; every rank receives omega^t, and who trains where with which rho
        with annotate_errors(f"round {t + 1}"), clock("broadcast"):
            t = broadcast_plan(comm, server, messages, config.rounds, t)
        if this and t > this.t:
            record = parts.recorder.record(this)
            clock = Clock(parts.note)  # what the caller does with the record counts towards the next round
            yield record
        if t == config.rounds or messages.broadcast.head["leave"]:
            return
        this = Round(t, clock)
        with annotate_errors(f"round {t + 1}"):
            parts.note("begin", round=t + 1)
            resident.clear()
            # III-B: generate images; train omega_a on them at the server, or bring them to the clients ...
            generate(this, parts)
            if server:
                _augment(this, config, server.images, worker.model, resident.omega, parts.leaving)
            if config.sends or config.fills:
                _exchange_images(this, comm, config, server, parts.client_images, messages.broadcast.plan)
            # III-C: ... while every rank trains its clients
            parts.recorder.begin(t, omega)
            train_clients(this, comm, server, worker, messages, parts.note, parts.leaving)
            # III-D: sum rho_n omega_n exactly; the algorithm turns the sum into omega_fl
            reduce_sums(this, parts)
            with parts.questions.session() as ask:
                if server and messages.reduction.is_complete() and not this.interrupted:
                    this.average, this.omega_fl = aggregate(server, omega, parameters, messages)
                    this.kappa2, this.asked = server.kappa2(
                        omega, this.omega_fl, this.omega_a, parameters, Trials(ask)
                    )
                    parts.recorder.note(this, server, omega, Trials(ask))
                    kappa1, kappa2 = 1 - this.kappa2, this.kappa2
                    # Eq. (1); then, if the server refines the result with its images
                    mixed = weighted_sum((kappa1, this.omega_fl), (kappa2, this.omega_a), omega)
                    omega.copy_(refine(this, server, mixed, worker.model, messages, ask))
                    t += 1


def broadcast_plan(comm: MPI.Comm, server: Server | None, messages: Messages, rounds: int, t: int) -> int:
    """Broadcast omega^t and the plan of round t, or that all ranks leave.

    t: finished rounds; only rank 0's value counts. rounds: of the run. Returns rank 0's t on every rank.
    """
    head = messages.broadcast.head
    if server:
        head["round"], head["leave"] = t, int(messages.reduction.rank_column("leave").max())
        if t < rounds:
            server.select(t, messages.broadcast)
            head["batches"] = len(server.images.division.ranks) if server.images.division else 0
    collectives.broadcast(comm, messages.broadcast.buffer)
    messages.resident.update()
    messages.reduction.resize(int(head["cohort"]))
    return int(head["round"])


def generate(this: Round, parts: Parts) -> None:
    """Take the round's images from the bank, or generate them, on several ranks if rank 0 decided so."""
    config, server, head = parts.config, parts.server, parts.messages.broadcast.head
    if not (head["batches"] or server and (config.generates or config.has_server_images)):
        return
    with this.clock("generate"):
        if head["batches"]:
            report = parts.generation.make(int(head["batches"]), server.images if server else None)
            this.shared, this.shared_until = report.own_seconds, this.clock.now()
            if server:
                this.interrupted = report.left
                server.images.note_shared(server.state, report)
        if server and not this.interrupted:
            this.made, this.interrupted = server.images.make(server.state, parts.leaving, this.clock.note)


def _augment(
    this: Round,
    config: Config,
    images: ServerImages,
    model: FlatModel,
    omega: torch.Tensor,
    leaving: Callable[[], int],
) -> None:
    """Train omega_a on all images of the server. omega: omega^t, float32 (size,), on the model's device."""
    if config.augments and not this.interrupted:
        with this.clock("augment"):
            this.interrupted = bool(leaving())
            if not this.interrupted:
                this.omega_a, this.augmented = augment(
                    model, omega, images, config.augmented, config.seed, this.t
                )


def _exchange_images(
    this: Round,
    comm: MPI.Comm,
    config: Config,
    server: Server | None,
    client_images: ClientImages,
    plan: np.ndarray,
) -> None:
    """Bring the images that clients train on, and the plan that depends on them, to every rank."""
    with this.clock("send"):
        if server and config.sends:
            server.send(plan)
        client_images.exchange(comm, server.images if server else None)
        if config.sends:
            client_images.exchange_plan(comm, plan)


def train_clients(
    this: Round,
    comm: MPI.Comm,
    server: Server | None,
    worker: Worker,
    messages: Messages,
    note: Callable[..., None],
    leaving: Callable[[], int],
) -> None:
    """Train this rank's clients and wait for the other ranks.

    If the server has to wait long enough, it generates images of later rounds meanwhile.
    """
    plan, reduction, clock = messages.broadcast.plan, messages.reduction, this.clock
    # when the other ranks began to train
    begun = max(this.shared_until, clock.starts.get("send", 0.0) + clock.seconds.get("send", 0.0))
    meanwhile = (
        (lambda: server.images.make_ahead(server.state, begun + server.seconds_of_others - clock.now()))
        if server
        else None
    )
    if server:
        reduction.skip(plan["rank"] == NO_RANK, server.state.samples[plan["client"]])
    with clock("train"):
        worker.train(this.t, clock)
    note("wait")
    this.waiting = collectives.wait_for_all(comm, meanwhile, leaving)
    reduction.ranks[comm.rank] = clock.seconds["train"], this.waiting.idle_seconds, leaving(), this.shared


def reduce_sums(this: Round, parts: Parts) -> None:
    """Sum over ranks.

    A rho policy that needs the trained models decides first; its coefficients are broadcast before the sum. A
    defence combines the models, and the sum has the result.
    """
    comm, _, server, worker, messages, *_ = parts
    broadcast, questions = messages.broadcast, parts.questions
    if worker.delays:
        rows = messages.reduction.clients.copy()
        collectives.wait_for_all(comm)
        collectives.reduce_sum(comm, rows.view("i8"))
        with questions.session() as ask:
            if server and not this.interrupted:
                server.weigh_models(
                    broadcast.plan, rows, broadcast.weights, worker.model.parameters, Trials(ask)
                )
        # on rank 0 the policy's, or 0 if it was not called
        coefficients = broadcast.plan["rho"].copy()
        collectives.broadcast(comm, coefficients)
        worker.add_kept(coefficients)
    with this.clock("reduce"):
        if parts.combination:
            parts.combination.combine(server, this.omega_a, this.interrupted)
            this.slice_bytes = parts.combination.bytes
        messages.resident.reduce(comm)
    if worker.secure:
        with this.clock("unmask"):
            this.secured = worker.secure.unmask(comm, server, this.interrupted)


def weighted_sum(
    one: tuple[float, torch.Tensor | None], other: tuple[float, torch.Tensor | None], default: torch.Tensor
) -> torch.Tensor:
    """Add two weighted models: float64 (size,).

    one, other: (weight, model (size,)); a model of None is left out. default: the result if both are None.
    Raises ArithmeticError if the result is not finite.
    """
    terms = [weight * model.double() for weight, model in (one, other) if model is not None]
    total = reduce(add, terms) if terms else default
    # The sum is finite only if every weight is, and is ten times as fast to check.
    if not total.sum().isfinite():
        raise FloatingPointError("the new global weights are not finite; a smaller learning rate may help")
    return total
