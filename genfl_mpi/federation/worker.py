"""The clients that a rank hosts: trained from omega^t, one by one or several as one batched computation, and added to its sum."""

from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from genfl_mpi.data.clients import noise_of_free_rider
from genfl_mpi.federation.messages import NOBODY
from genfl_mpi.learning.batched_clients import Twin
from genfl_mpi.learning.batches import local_batches
from genfl_mpi.learning.free_riders import free_ride
from genfl_mpi.learning.training import at_round, train
from genfl_mpi.learning.weights import ExactSum
from genfl_mpi.mpi import collectives, failing
from genfl_mpi.results import sealed_files
from genfl_mpi.results.client_state import Variates
from genfl_mpi.util import streams


class Host:
    """simulation: the `Simulation`, of which it uses what stays the same; folder: where SCAFFOLD's clients keep their control
    variates; run: the id of the run that these are of, None for a new one. Collective; raises UserError on
    every rank if the configured groups cannot be trained together.

    variates, variate_sum: with SCAFFOLD, the `Variates` in the folder and the `ExactSum` of their changes; else None.
    """

    def __init__(self, simulation, folder, run):
        self.simulation, self.config, self.comm = simulation, simulation.config, simulation.comm
        self.model, self.down, self.up, self.there = simulation.model, simulation.down, simulation.up, simulation.there
        self.mu = self.config.algorithm.mu if self.config.algorithm.name == "fedprox" else 0.0
        self.variates = self.variate_sum = self.twin = None
        if self.config.algorithm.name == "scaffold":
            run = run or collectives.from_rank0(self.comm, sealed_files.new_run)
            self.variates = Variates(Path(folder), self.model.parameters, run)
            self.variate_sum = ExactSum(self.up.variate_units)
        if self.config.trains_clients and self.config.training.together > 1:
            self.twin = collectives.together(
                self.comm, lambda: Twin(self.model, simulation.about.shape, self.config.training))

    def train(self, clock):
        """Train this rank's part of the cohort, unless the ranks are asked to leave. Groups are those that follow one another in
        the cohort, as many as training.together says, on whatever rank they have been given to."""
        ranks, together = self.down.plan["rank"], self.config.training.together
        heard = np.flatnonzero(ranks != NOBODY).tolist()
        for first in range(0, len(heard), together):
            places = heard[first : first + together]
            if ranks[places[0]] == self.comm.rank and not self.simulation.leaving():
                if self.twin:
                    self._train_group(places, clock)
                else:
                    self._train_client(places[0], *self.down.plan[places[0]], clock)

    def samples_of(self, client):
        """What a client trains on, on the device: float32 images (n, C, H, W) and int64 labels (n,)."""
        images, labels = self.there.data(self.simulation.data, client, self.config, self.simulation.about)
        return self.simulation.placement.beside(client, images, labels)

    def _train_client(self, place, rho, client, rank, since, epochs, clock):
        """Train the client at a place of the cohort, a record of the `Down` message's plan, add rho_n omega_n to the exact sum,
        and note how it went."""
        client, epochs, round = int(client), int(epochs), self.simulation.round
        self.simulation.note("train", client)
        start = clock.now()
        images, labels = self.samples_of(client)
        settings, correction = at_round(self.config.training, round).model_copy(update={"epochs": epochs}), None
        rng = streams.generator(self.config.seed, "client", round, client)
        with failing.named(f"client {client}"):
            if self.variates is not None:  # SCAFFOLD (Karimireddy et al. 2020): every gradient is corrected by c - c_n
                common, own = torch.from_numpy(self.down.variate), torch.from_numpy(self.variates.read(client, int(since)))
                correction = (common - own).to(self.there.device)
            noise = noise_of_free_rider(self.simulation.data, client, self.config)
            if noise is None:
                report = train(self.model, self.there.start, images, labels, settings, rng, self.mu, correction)
            else:
                report = free_ride(self.model, self.there.start, images, labels, noise, rng)
            largest, update_norm = self._add(place, float(rho), self.model.weights, report)
            if self.variates is not None and np.isfinite(update_norm):
                self._control(client, own, common, settings, len(images))
        self._note(place, report, largest, update_norm, start, clock.now() - start)

    def _train_group(self, places, clock):
        """Of the group's time each client is said to have taken a part that goes with its samples and epochs, one after another."""
        plan, round, start, done = self.down.plan[places], self.simulation.round, clock.now(), []
        clients, epochs = plan["client"].tolist(), plan["epochs"].tolist()
        self.simulation.note("train", clients[0])
        training = at_round(self.config.training, round)
        with failing.named(f"clients {', '.join(map(str, clients))}"):
            trained = self.twin.train(
                self.there.start,
                [self.samples_of(client) for client in clients],
                [training.model_copy(update={"epochs": passes}) for passes in epochs],
                [streams.generator(self.config.seed, "client", round, client) for client in clients], self.mu)
        for place, client, rho, (weights, report) in zip(places, clients, plan["rho"].tolist(), trained):
            with failing.named(f"client {client}"):
                done.append((place, report, *self._add(place, rho, weights, report)))
        ends = [0, *accumulate(report.samples * passes for (_, report, *_), passes in zip(done, epochs))]
        second = (clock.now() - start) / ends[-1]
        for one, before, after in zip(done, ends, ends[1:]):
            self._note(*one, start + before * second, (after - before) * second)

    def _add(self, place, rho, weights, report):
        """Add rho_n omega_n to the exact sum. Returns the largest weight's size and the length of the update. A client whose loss
        or weights are not finite is an ArithmeticError, or stays outside the sum, with an update of length NaN."""
        simulation, parameters = self.simulation, self.model.parameters
        if self.config.audit:
            self.up.outputs[place] = (weights[simulation.outputs].cpu() - simulation.weights[simulation.outputs]).numpy()
        try:
            report.check()
            simulation.probes.keep(place, weights)
            if simulation.council.keeps:
                return simulation.council.keep(place, weights, simulation.weights[:parameters])
            return self.there.partial.add(rho, weights, self.there.start[:parameters])
        except ArithmeticError:
            if self.config.faults.nonfinite == "stop":
                raise
            return 0.0, np.nan

    def _note(self, place, report, largest, update_norm, start, seconds):
        self.up.clients[place] = (report.samples, report.loss_first_epoch, report.loss_last_epoch, report.accuracy_last_epoch,
                                  update_norm, largest, start, seconds, self.comm.rank)

    def _control(self, client, own, common, settings, samples):
        """SCAFFOLD's new variate of a client that has trained, by option II:
        c_n <- c_n - c + (omega^t - omega_n) / (steps lr)."""
        size = self.model.parameters
        steps = settings.epochs * local_batches(samples, settings.batch_size)
        moved = self.simulation.weights[:size] - self.model.weights[:size].cpu()
        new = own - common + moved / (steps * settings.lr)
        self.variates.write(client, self.simulation.round + 1, new.numpy())
        self.variate_sum.add(1 / self.config.clients, new - own)
