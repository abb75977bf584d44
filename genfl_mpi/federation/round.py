"""The round of generative federated learning (GenFL): the paper's steps, in the paper's order."""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch

from genfl_mpi.federation import records
from genfl_mpi.federation.aggregation import aggregate
from genfl_mpi.federation.augmentation import augment
from genfl_mpi.federation.client_images import ClientImages
from genfl_mpi.federation.messages import NO_RANK, Broadcast, Reduction
from genfl_mpi.federation.probes import Probes
from genfl_mpi.federation.questions import Questions
from genfl_mpi.federation.records import Round
from genfl_mpi.federation.resident import Resident
from genfl_mpi.federation.server import Server
from genfl_mpi.federation.trials import Trials
from genfl_mpi.federation.worker import Worker
from genfl_mpi.mpi import collectives, failing
from genfl_mpi.util.timing import Clock


class Parts(NamedTuple):
    """What computes a round. server: on rank 0, elsewhere None. message, reduction: what rank 0 broadcasts, and what is reduced to it.
    evaluate: () -> (accuracy, loss, accuracy per class) of omega^t, collective. note: told (phase, client, round) of what this rank
    begins. leaving: returns an exit status when the ranks were asked to leave, and else 0."""

    comm: Any
    config: Any
    data: dict
    server: Server | None
    worker: Worker
    message: Broadcast
    reduction: Reduction
    resident: Resident
    client_images: ClientImages
    questions: Questions
    probes: Probes
    evaluate: Callable
    note: Callable
    leaving: Callable


def rounds(parts, t):
    """Compute round t (0 is the first) and all that follow, until the ranks are asked to leave: yields the `Record` of each, once the
    next one's cohort is known to every rank. Collective. A round that is left before its end counts for nothing."""
    config, server, message, resident = parts.config, parts.server, parts.message, parts.resident
    omega, clock, this = torch.from_numpy(message.weights), Clock(parts.note), None
    while True:
        # III-A: the clients' labels are known; omega^t, and who trains where with which rho, to every rank
        with failing.named(f"round {t + 1}"), clock("broadcast"):
            t = _announce(parts, t)
        if this and t > this.t:
            record = _evaluated(parts, this)
            clock = Clock(parts.note)  # what happens to the record, writing it say, is time of the next round
            yield record
        if t == config.rounds or message.head["leave"]:
            return
        this = Round(t, clock)
        with failing.named(f"round {t + 1}"):
            parts.note("begin", round=t + 1)
            resident.clear()
            # III-B: the server generates images and trains omega_a on them, or the clients get them ...
            if server:
                _generate_and_augment(parts, this)
            if config.sends or config.fills:
                _exchange_images(parts, this)
            # III-C: ... while each rank trains its clients
            parts.probes.begin(t, omega, message.plan)
            _train(parts, this)
            # III-D: sum_n rho_n omega_n, exactly, and what the algorithm makes of it
            _reduce(parts, this)
            with parts.questions.session() as ask:
                if server and _is_complete(parts):
                    this.average, this.omega_fl = aggregate(
                        server, omega, parts.worker.model.parameters, message.plan, parts.reduction, resident
                    )
                    this.kappa2, this.asked = server.kappa2(
                        omega, this.omega_fl, this.omega_a, parts.worker.model.parameters, Trials(ask)
                    )
                    records.note(parts, this, omega, Trials(ask))
                    kappa1, kappa2 = 1 - this.kappa2, this.kappa2
                    # Eq. (1)
                    omega.copy_(weighted_sum((kappa1, this.omega_fl), (kappa2, this.omega_a), omega))
                    t += 1


def _announce(parts, t):
    """Broadcast omega^t, and which clients train where in round t; or that all ranks leave. t: rounds that are finished, known to rank 0.
    Returns it, on every rank."""
    head = parts.message.head
    if parts.server:
        head["round"], head["leave"] = t, int(parts.reduction.of_ranks("leave").max())
        if t < parts.config.rounds:
            parts.server.select(t, parts.message)
    collectives.broadcast(parts.comm, parts.message.buffer)
    parts.resident.update()
    return int(head["round"])


def _generate_and_augment(parts, this):
    """On rank 0: make the round's images, and train omega_a on all that there are."""
    config, server = parts.config, parts.server
    if config.generates or config.augments:
        with this.clock("generate"):
            this.made = server.images.make(server.state, parts.leaving)
    if config.augments and not server.images.interrupted:
        with this.clock("augment"):
            server.images.interrupted = bool(parts.leaving())
            if not server.images.interrupted:
                this.omega_a, this.augmented = augment(
                    parts.worker.model,
                    parts.resident.omega,
                    server.images,
                    config.augmented,
                    config.seed,
                    this.t,
                )


def _exchange_images(parts, this):
    """Bring images that clients train on to every rank, and the plan that depends on them."""
    server, images = parts.server, parts.client_images
    with this.clock("send"):
        if server and parts.config.sends:
            server.send(parts.message.plan)
        images.exchange(parts.comm, server.images if server else None)
        if parts.config.sends:
            images.exchange_plan(parts.comm, parts.message.plan)


def _train(parts, this):
    """Train this rank's clients, and wait for the other ranks; the server makes images of later rounds meanwhile, if it has time."""
    server, plan, reduction, clock = parts.server, parts.message.plan, parts.reduction, this.clock
    begun = clock.starts.get("send", 0.0) + clock.seconds.get("send", 0.0)  # when the other ranks began

    def make_ahead():
        return server.images.make_ahead(server.state, begun + server.seconds_of_others - clock.now())

    if server:
        reduction.skip(plan["rank"] == NO_RANK, server.state.samples[plan["client"]])
    with clock("train"):
        parts.worker.train(this.t, clock)
    parts.note("wait")
    this.waiting = collectives.arrive(
        parts.comm, make_ahead if server and parts.config.generates else None, parts.leaving
    )
    reduction.ranks[parts.comm.rank] = clock.seconds["train"], this.waiting.idle_seconds, parts.leaving()


def _reduce(parts, this):
    """Sum over ranks. A rho policy that looks at trained models is asked first, and their coefficients travel then."""
    comm, worker, plan = parts.comm, parts.worker, parts.message.plan
    if worker.keeps:
        rows = parts.reduction.clients.copy()
        collectives.arrive(comm)
        collectives.reduce_sum(comm, rows.view("i8"))
        with parts.questions.session() as ask:
            if parts.server:
                parts.server.weigh_models(
                    plan, rows, parts.message.weights, worker.model.parameters, Trials(ask)
                )
        coefficients = plan["rho"].copy()  # on rank 0 those of the policy, or 0 if it was not asked
        collectives.broadcast(comm, coefficients)
        worker.add_kept(coefficients)
    with this.clock("reduce"):
        parts.resident.reduce(comm)


def _is_complete(parts):
    """Whether every part of the round was done, and nothing skipped in order to leave. On rank 0, after the reduction."""
    return parts.reduction.is_complete() and not parts.server.images.interrupted


def weighted_sum(one, other, default):
    """The sum of two models, each given with its weight, as (float, (size,)): float64 (size,). A model that is None has no place in it;
    without any it is `default`. Raises ArithmeticError if the result is not finite."""
    terms = [weight * model.double() for weight, model in (one, other) if model is not None]
    total = reduce(add, terms) if terms else default
    if not total.sum().isfinite():  # as of the whole vector, and ten times as quick
        raise FloatingPointError("the new global weights are not finite; a smaller learning rate may help")
    return total


def _evaluated(parts, this):
    """The `Record` of a round, with the accuracy of the weights that it led to."""
    with failing.named(f"round {this.t + 1}"):
        with this.clock("evaluate"):
            accuracy, loss, accuracy_per_class = parts.evaluate()
        probed = parts.probes.look(this.t + 1, this.average)
        return records.of_round(parts, this, accuracy, loss, accuracy_per_class, probed)
