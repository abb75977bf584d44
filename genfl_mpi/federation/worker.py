"""The worker: trains a rank's clients, one by one or batched, and adds them to the exact sums."""

from __future__ import annotations

from copy import copy
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.data.clients import free_rider_noise
from genfl_mpi.federation import differential_privacy, transforms
from genfl_mpi.federation.algorithms.interface import Client
from genfl_mpi.federation.messages import MODEL, NO_RANK, RHO
from genfl_mpi.federation.robust import attacks
from genfl_mpi.federation.secure_aggregation import SecureAggregation
from genfl_mpi.federation.transforms.chain import Chain
from genfl_mpi.learning.batched_clients import BatchedModel
from genfl_mpi.learning.batches import local_batches
from genfl_mpi.learning.free_riders import free_ride
from genfl_mpi.learning.training import combine_reports, settings_at_round, train
from genfl_mpi.mpi import collectives
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError, annotate_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from genfl_mpi.config.sections.local_training import Training
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.algorithms.interface import Algorithm
    from genfl_mpi.federation.client_data import ClientData
    from genfl_mpi.federation.parts import Messages
    from genfl_mpi.federation.personal import Personalisation
    from genfl_mpi.learning.training import Report
    from genfl_mpi.learning.weights import FlatModel
    from genfl_mpi.mpi.collectives import MPI
    from genfl_mpi.results.client_state import ClientStates
    from genfl_mpi.util.timing import Clock


class Worker:
    """Train the clients that are assigned to this rank.

    model: the rank's `FlatModel`, which is overwritten. client_states: where the clients' own arrays are
    stored, or None. keeps: whether trained models are kept for questions, until the next round; delays:
    whether they are summed only after the rho policy has seen them. note: called as note(phase, client,
    done=k, of=n). leaving: returns an exit status if the ranks were asked to
    leave, else 0. Collective; raises UserError on every rank if there is an unknown transform, or if the
    configured groups cannot be trained together.

    kept: {place in the cohort: float32 (size,)}, this round's models. observers: functions of (place, float32
    (size,)), called with each client's model as it is summed, if its losses are finite. secure: masks what
    this rank's clients contribute, or None. messages_of: (client) -> the `Messages` with the model that it
    starts from and the sum that it enters, if they are not the same for all.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        config: Config,
        algorithm: Algorithm,
        model: FlatModel,
        messages: Messages,
        personal: Personalisation,
        client_states: ClientStates | None,
        dataset: ClientData,
        keeps: bool,
        delays: bool,
        note: Callable[..., None],
        leaving: Callable[[], int],
    ) -> None:
        self.comm, self.config, self.algorithm, self.model = comm, config, algorithm, model
        self.broadcast, self.reduction, self.resident = messages
        self.client_states, self.dataset, self.personal = client_states, dataset, personal
        self.keeps, self.delays = keeps, delays
        self.note, self.leaving = note, leaving
        self.kept: dict[int, torch.Tensor] = {}
        self._settings: dict[tuple[int, int], Training] = {}
        self.observers: list[Callable[[int, torch.Tensor], None]] = []
        self.messages_of: Callable[[int], Messages] | None = None
        self.secure: SecureAggregation | None = None
        if config.privacy.secure_aggregation and config.trains_clients:
            self.secure = SecureAggregation(config, messages)
        self.chain = Chain(
            [
                *attacks.find_transform(config, dataset.arrays["attackers"]),
                *collectives.call_on_all(comm, lambda: transforms.find(config)),
            ],
            config,
            model.parameters,
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
        if self.secure:
            self.secure.begin(round)
        ranks, together = self.broadcast.plan["rank"], self.config.training.clients_per_batch
        self.kept.clear()
        training = np.flatnonzero(ranks != NO_RANK).tolist()
        groups = [training[first : first + together] for first in range(0, len(training), together)]
        assigned = [places for places in groups if ranks[places[0]] == self.comm.rank]
        done, of = 0, sum(map(len, assigned))
        for places, following in zip(assigned, [*assigned[1:], []]):
            if self.leaving():
                break
            if self.client_states and following:
                self.client_states.read_ahead(self.broadcast.locations[following[0]])
            self.note("train", int(self.broadcast.plan["client"][places[0]]), done=done, of=of)
            if self.twin:
                self._train_group(self.twin, places, round, clock)
            elif self.messages_of:
                client = int(self.broadcast.plan["client"][places[0]])
                self.train_member(self.messages_of(client), places[0], round, clock)
            else:
                self._train_client(places[0], round, clock)
            if self.secure:
                self.secure.mask(places)
            done += len(places)
        if self.client_states:
            self.client_states.commit()

    def train_member(self, messages: Messages, place: int, round: int, clock: Clock) -> None:
        """Train one member of the plan of other messages, from their omega. round: 0 is the first."""
        other = copy(self)
        other.broadcast, other.reduction, other.resident = messages
        other._train_client(place, round, clock)

    def add_kept(self, coefficients: np.ndarray) -> None:
        """Add the kept models to the sum. coefficients: float64 (cohort,)."""
        for place, weights in self.kept.items():
            with annotate_errors(f"client {self.broadcast.plan['client'][place]}"):
                self.resident.sums[MODEL].add(coefficients[place], weights)

    def _train_client(self, place: int, round: int, clock: Clock) -> None:
        """Train the client at a place of the cohort, add its contribution to the sums, fill in its row."""
        rho, number, _, since, epochs = self.broadcast.plan[place].tolist()
        start, omega, arrays = clock.now(), self.resident.omega, self.resident.arrays
        images, labels = self.dataset.load(number)
        settings = self._settings_at(round, epochs)
        steps = epochs * local_batches(len(images), settings.batch_size)
        client = Client(number, len(images), steps, settings, self.model.parameters, since)
        rng = streams.generator(self.config.seed, "client", round, number)
        with annotate_errors(f"client {number}"):
            own = self._read_state(place, number, since)
            noise = free_rider_noise(self.dataset.arrays, number, self.config)
            if noise is None:
                report = self._train_stages(client, own, since, images, labels, rng, round)
            else:
                report = free_ride(self.model, omega, images, labels, noise, rng)
            trained, kept = self.personal.separate(omega, self.model.weights)
            sent = self.chain.apply(trained, omega, round, number, own)
            largest, update_norm = self._add(place, rho, sent, report)
            if np.isfinite(update_norm):
                sums, new = self.algorithm.contribute(client, omega, sent, arrays, own, self.config)
                for name, (coefficient, tensor) in sums.items():
                    self.resident.sums[name].add(coefficient, tensor)
                kept |= self.personal.train_beside(omega, own, since, images, labels, settings, round, number)
                self._write_state(place, number, round + 1, own | new | kept)
        self._report(place, report, largest, update_norm, start, clock.now() - start)

    def _settings_at(self, round: int, epochs: int) -> Training:
        """Return config.training in a round for a client's epochs: one object for all such clients."""
        if (round, epochs) not in self._settings:
            for key in [key for key in self._settings if key[0] != round]:
                del self._settings[key]  # in place: the workers of `train_member` share the dict
            training = settings_at_round(self.config.training, round)
            self._settings[round, epochs] = training.model_copy(update={"epochs": epochs})
        return self._settings[round, epochs]

    def _train_stages(
        self,
        client: Client,
        own: dict[str, torch.Tensor],
        since: int,
        images: torch.Tensor,
        labels: torch.Tensor,
        rng: np.random.Generator,
        round: int,
    ) -> Report:
        """Run the algorithm's local trainings, one after another from omega^t; the model has the result.

        With personal layers they begin with the client's own, which may be trained first.
        """
        omega = self.personal.begin(self.resident.omega, own, since)
        begin, reports = self.personal.train_head(omega, images, labels, client.settings, round, client.id)
        with self.personal.training_body():
            for stage in self.algorithm.stages(client, omega, self.resident.arrays, own, self.config):
                local = client.settings
                if stage.epochs != local.epochs:
                    local = local.model_copy(update={"epochs": stage.epochs})
                reports.append(
                    train(
                        self.model,
                        begin,
                        images,
                        labels,
                        local,
                        rng,
                        stage.prox,
                        stage.correction,
                        omega,
                        stage.loss,
                    )
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
        with annotate_errors(f"clients {', '.join(map(str, clients))}"):
            data = [self.dataset.load(client) for client in clients]
            settings = [training.model_copy(update={"epochs": passes}) for passes in epochs]
            whole = Client(clients[0], len(data[0][1]), 0, settings[0], self.model.parameters)
            [stage] = self.algorithm.stages(whole, omega, self.resident.arrays, {}, self.config)
            rngs = [streams.generator(self.config.seed, "client", round, client) for client in clients]
            trained = twin.train(omega, data, settings, rngs, stage.prox)
        for place, row, (weights, report) in zip(places, plan.tolist(), trained):
            rho, client, _, since, _ = row
            with annotate_errors(f"client {client}"):
                own = self._read_state(place, client, since)
                sent = self.chain.apply(weights, omega, round, client, own)
                done.append((place, report, *self._add(place, rho, sent, report)))
                if np.isfinite(done[-1][-1]):
                    self._write_state(place, client, round + 1, own)
        ends = [0, *accumulate(report.samples * passes for (_, report, *_), passes in zip(done, epochs))]
        second = (clock.now() - start) / ends[-1]
        for one, before, after in zip(done, ends, ends[1:]):
            self._report(*one, start + before * second, (after - before) * second)

    def _read_state(self, place: int, client: int, since: int) -> dict[str, torch.Tensor]:
        """Read the client's own arrays onto the device. since: the round that wrote them, or 0."""
        if not self.client_states:
            return {}
        arrays = self.client_states.read(client, since, self.broadcast.locations[place])
        return {name: torch.tensor(array, device=self.resident.device) for name, array in arrays.items()}

    def _write_state(self, place: int, client: int, round: int, own: dict[str, torch.Tensor]) -> None:
        """Write the client's own arrays, if it has any. round: 1 is the first."""
        if own and not self.client_states:
            raise UserError(
                f"algorithm.name: {self.algorithm.name} keeps {', '.join(own)} of client {client} without "
                "declaring it; add it to `declare`, of kind client"
            )
        if self.client_states and own:
            arrays = {name: tensor.cpu().numpy() for name, tensor in own.items()}
            offset, checksum = self.client_states.write(client, round, arrays)
            self.reduction.records[place] = offset + 1, checksum

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
            if self.config.privacy.clip is not None:
                return self._add_bounded(place, rho, weights - self.resident.omega)
            measured = self.resident.sums[MODEL].add(0.0 if self.delays else rho, weights, omega)
            if RHO in self.resident.sums:
                self.resident.sums[RHO].add(rho, torch.ones(1))
            if self.keeps:
                self.kept[place] = weights.to("cpu", copy=True)
            return measured
        except ArithmeticError:
            if self.config.faults.nonfinite == "stop":
                raise
            return 0.0, np.nan

    def _add_bounded(self, place: int, rho: float, change: torch.Tensor) -> tuple[float, float]:
        """Add rho_n times the clipped update, float32 (size,), and a share of the noise, to the exact sums.

        Returns the largest absolute value of the update, and its norm. Raises FloatingPointError if it is not
        finite.
        """
        head, config, sums = self.broadcast.head, self.config, self.resident.sums
        if not change.isfinite().all():
            raise FloatingPointError("the trained weights are not finite; a smaller learning rate may help")
        clipped, is_within = differential_privacy.clip(change, float(head["clip"]))
        measured = sums[MODEL].add(rho, clipped, torch.zeros_like(clipped))
        if RHO in sums:
            sums[RHO].add(rho, torch.ones(1))
        if differential_privacy.WITHIN in sums:
            sums[differential_privacy.WITHIN].add(rho, torch.tensor([0.5 if is_within else -0.5]))
        if config.privacy.noise == "distributed":
            noise = np.zeros(len(self.reduction.units), dtype=np.int64)
            client, size = int(self.broadcast.plan["client"][place]), len(change)
            noise[:size] = differential_privacy.noise_share(
                config, int(head["round"]), client, float(head["clip"]), float(head["multiplier"]), size
            )
            self.resident.add(noise)
        return measured

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
