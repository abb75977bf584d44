"""The worker: trains a rank's clients, one by one or batched, and adds them to the exact sums."""

from __future__ import annotations

from copy import copy
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.data.clients import free_rider_noise
from genfl_mpi.federation import transforms
from genfl_mpi.federation.algorithms.interface import Client
from genfl_mpi.federation.messages import MODEL, NO_RANK
from genfl_mpi.federation.transforms.chain import Chain
from genfl_mpi.learning.batched_clients import BatchedModel
from genfl_mpi.learning.batches import local_batches
from genfl_mpi.learning.free_riders import free_ride
from genfl_mpi.learning.training import combine_reports, settings_at_round, train
from genfl_mpi.mpi import collectives, failing
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Algorithm
    from genfl_mpi.federation.client_data import ClientData
    from genfl_mpi.federation.parts import Messages
    from genfl_mpi.learning.training import Report
    from genfl_mpi.learning.weights import FlatModel
    from genfl_mpi.mpi.collectives import MPI
    from genfl_mpi.results.client_state import ClientStates
    from genfl_mpi.util.timing import Clock


class Worker:
    """Train the clients that are assigned to this rank.

    model: the rank's `FlatModel`, which is overwritten. client_states: where the algorithm's client arrays
    are stored, or None. keeps: whether trained models are kept for questions before they are summed. note:
    called as note(phase, client, done=k, of=n). leaving: returns an exit status if the ranks were asked to
    leave, else 0. Collective; raises UserError on every rank if there is an unknown transform, or if the
    configured groups cannot be trained together.

    kept: {place in the cohort: float32 (size,)}, models that wait for their coefficients. observers:
    functions of (place, float32 (size,)), called with each client's model as it is summed, if its losses are
    finite.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        config: Config,
        algorithm: Algorithm,
        model: FlatModel,
        messages: Messages,
        client_states: ClientStates | None,
        dataset: ClientData,
        keeps: bool,
        note: Callable[..., None],
        leaving: Callable[[], int],
    ) -> None:
        self.comm, self.config, self.algorithm, self.model = comm, config, algorithm, model
        self.broadcast, self.reduction, self.resident = messages
        self.client_states, self.dataset, self.keeps = client_states, dataset, keeps
        self.note, self.leaving = note, leaving
        self.kept: dict[int, torch.Tensor] = {}
        self.observers: list[Callable[[int, torch.Tensor], None]] = []
        self.chain = Chain(
            collectives.call_on_all(comm, lambda: transforms.find(config)), config, model.parameters
        )
        self.twin: BatchedModel | None = None
        if config.trains_clients and config.training.clients_per_batch > 1:
            self.twin = collectives.call_on_all(
                comm, lambda: BatchedModel(model, dataset.about.shape, config.training)
            )

    def train(self, round: int, clock: Clock) -> None:
        """Train this rank's part of the cohort, unless the ranks are asked to leave.

        round: 0 is the first. Groups are neighbours in the cohort, training.clients_per_batch at a time,
        whatever the rank that they are assigned to.
        """
        ranks, together = self.broadcast.plan["rank"], self.config.training.clients_per_batch
        training = np.flatnonzero(ranks != NO_RANK).tolist()
        groups = [training[first : first + together] for first in range(0, len(training), together)]
        assigned = [places for places in groups if ranks[places[0]] == self.comm.rank]
        done, of = 0, sum(map(len, assigned))
        for places in assigned:
            if self.leaving():
                return
            self.note("train", int(self.broadcast.plan["client"][places[0]]), done=done, of=of)
            if self.twin:
                self._train_group(self.twin, places, round, clock)
            else:
                self._train_client(places[0], round, clock)
            done += len(places)

    def train_member(self, messages: Messages, place: int, round: int, clock: Clock) -> None:
        """Train one member of the plan of other messages, from their omega. round: 0 is the first."""
        other = copy(self)
        other.broadcast, other.reduction, other.resident = messages
        other._train_client(place, round, clock)

    def add_kept(self, coefficients: np.ndarray) -> None:
        """Add the kept models to the sum. coefficients: float64 (cohort,)."""
        for place, weights in self.kept.items():
            with failing.annotate_errors(f"client {self.broadcast.plan['client'][place]}"):
                self.resident.sums[MODEL].add(coefficients[place], weights)
        self.kept.clear()

    def _train_client(self, place: int, round: int, clock: Clock) -> None:
        """Train the client at a place of the cohort, add its contribution to the sums, fill in its row."""
        rho, number, _, since, epochs = self.broadcast.plan[place].tolist()
        start, omega, arrays = clock.now(), self.resident.omega, self.resident.arrays
        images, labels = self.dataset.load(number)
        settings = settings_at_round(self.config.training, round).model_copy(update={"epochs": epochs})
        steps = epochs * local_batches(len(images), settings.batch_size)
        client = Client(number, len(images), steps, settings, self.model.parameters)
        rng = streams.generator(self.config.seed, "client", round, number)
        with failing.annotate_errors(f"client {number}"):
            own = self._read_state(number, since)
            noise = free_rider_noise(self.dataset.arrays, number, self.config)
            if noise is None:
                report = self._train_stages(client, own, images, labels, rng)
            else:
                report = free_ride(self.model, omega, images, labels, noise, rng)
            sent = self.chain.apply(self.model.weights, omega, round, number, own)
            largest, update_norm = self._add(place, rho, sent, report)
            if np.isfinite(update_norm):
                sums, new = self.algorithm.contribute(client, omega, sent, arrays, own, self.config)
                for name, (coefficient, tensor) in sums.items():
                    self.resident.sums[name].add(coefficient, tensor)
                self._write_state(number, round + 1, own | new if self.client_states else new)
        self._report(place, report, largest, update_norm, start, clock.now() - start)

    def _train_stages(
        self,
        client: Client,
        own: dict[str, torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        rng: np.random.Generator,
    ) -> Report:
        """Run the algorithm's local trainings, one after another from omega^t; the model has the result."""
        omega, reports = self.resident.omega, []
        begin = omega
        for stage in self.algorithm.stages(client, omega, self.resident.arrays, own, self.config):
            local = client.settings.model_copy(update={"epochs": stage.epochs})
            reports.append(
                train(self.model, begin, images, labels, local, rng, stage.prox, stage.correction, omega)
            )
            begin = self.model.weights
        return combine_reports(reports)

    def _train_group(self, twin: BatchedModel, places: list[int], round: int, clock: Clock) -> None:
        """Train several clients as one batched computation.

        In the records the group's time is divided over the clients, one after another, in proportion to their
        samples times epochs.
        """
        plan, start, done = self.broadcast.plan[places], clock.now(), []
        clients, epochs = plan["client"].tolist(), plan["epochs"].tolist()
        training, omega = settings_at_round(self.config.training, round), self.resident.omega
        with failing.annotate_errors(f"clients {', '.join(map(str, clients))}"):
            data = [self.dataset.load(client) for client in clients]
            settings = [training.model_copy(update={"epochs": passes}) for passes in epochs]
            whole = Client(clients[0], len(data[0][1]), 0, settings[0], self.model.parameters)
            [stage] = self.algorithm.stages(whole, omega, self.resident.arrays, {}, self.config)
            rngs = [streams.generator(self.config.seed, "client", round, client) for client in clients]
            trained = twin.train(omega, data, settings, rngs, stage.prox)
        for place, row, (weights, report) in zip(places, plan.tolist(), trained):
            rho, client, _, since, _ = row
            with failing.annotate_errors(f"client {client}"):
                own = self._read_state(client, since)
                sent = self.chain.apply(weights, omega, round, client, own)
                done.append((place, report, *self._add(place, rho, sent, report)))
                if np.isfinite(done[-1][-1]):
                    self._write_state(client, round + 1, own)
        ends = [0, *accumulate(report.samples * passes for (_, report, *_), passes in zip(done, epochs))]
        second = (clock.now() - start) / ends[-1]
        for one, before, after in zip(done, ends, ends[1:]):
            self._report(*one, start + before * second, (after - before) * second)

    def _read_state(self, client: int, since: int) -> dict[str, torch.Tensor]:
        """Read the client's own arrays onto the device. since: the round that wrote them, or 0."""
        if not self.client_states:
            return {}
        arrays = self.client_states.read(client, since)
        return {name: torch.from_numpy(array).to(self.resident.device) for name, array in arrays.items()}

    def _write_state(self, client: int, round: int, own: dict[str, torch.Tensor]) -> None:
        """Write the client's own arrays, if it has any. round: 1 is the first."""
        if own and not self.client_states:
            raise UserError(
                f"algorithm.name: {self.algorithm.name} keeps {', '.join(own)} of client {client} without "
                "declaring it; add it to `declare`, of kind client"
            )
        if self.client_states and own:
            arrays = {name: tensor.cpu().numpy() for name, tensor in own.items()}
            self.client_states.write(client, round, arrays)

    def _add(self, place: int, rho: float, weights: torch.Tensor, report: Report) -> tuple[float, float]:
        """Add rho_n omega_n to the exact sum, or keep omega_n for a later sum.

        Returns the largest absolute weight and the norm of the update. If the client's loss or weights are
        not finite, raises ArithmeticError, or with faults.nonfinite=drop leaves it out of the sum, with a
        norm of NaN.
        """
        omega = self.resident.omega[: self.model.parameters]
        try:
            report.check()
            for observe in self.observers:
                observe(place, weights)
            measured = self.resident.sums[MODEL].add(0.0 if self.keeps else rho, weights, omega)
            if self.keeps:
                self.kept[place] = weights.to("cpu", copy=True)
            return measured
        except ArithmeticError:
            if self.config.faults.nonfinite == "stop":
                raise
            return 0.0, np.nan

    def _report(
        self,
        place: int,
        report: Report,
        largest: float,
        update_norm: float,
        start: float,
        seconds: float,
    ) -> None:
        """Fill in the row of the client at a place of the cohort, in the order of CLIENT_FIELDS."""
        self.reduction.clients[place] = (
            report.samples,
            report.loss_first_epoch,
            report.loss_last_epoch,
            report.accuracy_last_epoch,
            update_norm,
            largest,
            start,
            seconds,
            self.comm.rank,
        )
