"""A rank's clients: trained from omega^t, one by one or several as one batched computation, and added to the exact sums."""

from itertools import accumulate

import numpy as np
import torch

from genfl_mpi.data.clients import noise_of_free_rider
from genfl_mpi.federation.algorithms.interface import Client
from genfl_mpi.federation.messages import MODEL, NO_RANK
from genfl_mpi.learning.batched_clients import Twin
from genfl_mpi.learning.batches import local_batches
from genfl_mpi.learning.free_riders import free_ride
from genfl_mpi.learning.training import at_round, combined, train
from genfl_mpi.mpi import collectives, failing
from genfl_mpi.util import streams


class Worker:
    """comm: the ranks; config: `Config`; algorithm: the configured `Algorithm`; model: the rank's `FlatModel`; broadcast, reduction:
    the messages; resident: the rank's `Resident` buffers; client_states: the `ClientStates` of the algorithm's client arrays, or None; dataset: a
    `ClientData`; keeps: whether trained models are kept for questions before they are summed; note: told (phase, client);
    leaving: returns an exit status when the ranks were asked to leave. Collective; raises UserError on every rank if the
    configured groups cannot be trained together.

    kept: {place in the cohort: float32 (size,)}, models that wait for their coefficients. observers: functions of (place, float32
    (size,)), called with each trained model that is finite.
    """

    def __init__(
        self,
        comm,
        config,
        algorithm,
        model,
        messages,
        client_states,
        dataset,
        keeps,
        note,
        leaving,
    ):
        self.comm, self.config, self.algorithm, self.model = comm, config, algorithm, model
        self.broadcast, self.reduction, self.resident = messages
        self.dataset = dataset
        self.client_states, self.keeps, self.note, self.leaving = client_states, keeps, note, leaving
        self.kept, self.observers = {}, []
        self.twin = None
        if config.trains_clients and config.training.clients_per_batch > 1:
            self.twin = collectives.together(comm, lambda: Twin(model, dataset.about.shape, config.training))

    def train(self, round, clock):
        """Train this rank's part of the cohort, unless the ranks are asked to leave. Groups are those that follow one another in
        the cohort, as many as training.clients_per_batch says, on whatever rank they have been given to."""
        ranks, together = self.broadcast.plan["rank"], self.config.training.clients_per_batch
        training = np.flatnonzero(ranks != NO_RANK).tolist()
        for first in range(0, len(training), together):
            places = training[first : first + together]
            if ranks[places[0]] == self.comm.rank and not self.leaving():
                if self.twin:
                    self._train_group(places, round, clock)
                else:
                    self._train_client(places[0], round, clock)

    def add_kept(self, coefficients):
        """Add the kept models to the sum. coefficients: float64 (cohort,)."""
        for place, weights in self.kept.items():
            with failing.named(f"client {self.broadcast.plan['client'][place]}"):
                self.resident.sums[MODEL].add(coefficients[place], weights)
        self.kept.clear()

    def _train_client(self, place, round, clock):
        """Train the client at a place of the cohort, add what it contributes to the sums, and report how it went."""
        rho, number, _, since, epochs = self.broadcast.plan[place].tolist()
        self.note("train", number)
        start, omega = clock.now(), self.resident.omega
        images, labels = self.dataset.of(number)
        settings = at_round(self.config.training, round).model_copy(update={"epochs": epochs})
        steps = epochs * local_batches(len(images), settings.batch_size)
        client = Client(number, len(images), steps, settings, self.model.parameters)
        rng = streams.generator(self.config.seed, "client", round, number)
        with failing.named(f"client {number}"):
            own = self.client_states.read(number, since) if self.client_states else {}
            own = {name: torch.from_numpy(array).to(self.resident.device) for name, array in own.items()}
            noise = noise_of_free_rider(self.dataset.arrays, number, self.config)
            if noise is None:
                reports, begun = [], omega
                for stage in self.algorithm.stages(client, omega, self.resident.arrays, own, self.config):
                    local = settings.model_copy(update={"epochs": stage.epochs})
                    reports.append(
                        train(
                            self.model, begun, images, labels, local, rng, stage.prox, stage.correction, omega
                        )
                    )
                    begun = self.model.weights
                report = combined(reports)
            else:
                report = free_ride(self.model, omega, images, labels, noise, rng)
            largest, update_norm = self._add(place, rho, self.model.weights, report)
            if np.isfinite(update_norm):
                sums, own = self.algorithm.contribute(
                    client, omega, self.model.weights, self.resident.arrays, own, self.config
                )
                for name, (coefficient, tensor) in sums.items():
                    self.resident.sums[name].add(coefficient, tensor)
                if own:
                    self.client_states.write(
                        number, round + 1, {name: tensor.cpu().numpy() for name, tensor in own.items()}
                    )
        self._report(place, report, largest, update_norm, start, clock.now() - start)

    def _train_group(self, places, round, clock):
        """Of the group's time each client is said to have taken a part that goes with its samples and epochs, one after another."""
        plan, start, done = self.broadcast.plan[places], clock.now(), []
        clients, epochs = plan["client"].tolist(), plan["epochs"].tolist()
        self.note("train", clients[0])
        training, omega = at_round(self.config.training, round), self.resident.omega
        with failing.named(f"clients {', '.join(map(str, clients))}"):
            data = [self.dataset.of(client) for client in clients]
            settings = [training.model_copy(update={"epochs": passes}) for passes in epochs]
            whole = Client(clients[0], len(data[0][1]), 0, settings[0], self.model.parameters)
            [stage] = self.algorithm.stages(whole, omega, self.resident.arrays, {}, self.config)
            trained = self.twin.train(
                omega,
                data,
                settings,
                [streams.generator(self.config.seed, "client", round, client) for client in clients],
                stage.prox,
            )
        for place, client, rho, (weights, report) in zip(places, clients, plan["rho"].tolist(), trained):
            with failing.named(f"client {client}"):
                done.append((place, report, *self._add(place, rho, weights, report)))
        ends = [0, *accumulate(report.samples * passes for (_, report, *_), passes in zip(done, epochs))]
        second = (clock.now() - start) / ends[-1]
        for one, before, after in zip(done, ends, ends[1:]):
            self._report(*one, start + before * second, (after - before) * second)

    def _add(self, place, rho, weights, report):
        """Add rho_n omega_n to the exact sum, or keep omega_n for it. Returns the largest weight's size and the length of the
        update. A client whose loss or weights are not finite is an ArithmeticError, or stays outside the sum, with an update of
        length NaN."""
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

    def _report(self, place, report, largest, update_norm, start, seconds):
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
