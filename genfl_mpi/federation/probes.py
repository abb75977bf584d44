"""Probes: how the clients of a round differ, by the measures of the theory. They change nothing of the run.

Of F_n, the mean loss of client n over what it trains on, and F = sum |D_n| F_n / sum |D_n| over the probed clients:

    gradient difference  ||grad F_n - grad F|| at omega^t, of which delta_n is the largest over the rounds
    local error          F_n(omega_n^t) - F_n(omega_n*), of a client that trained; the least loss is taken to be the one after
                         probes.epochs more of its training, if that is less
    weight divergence    ||omega_fl - omega_sgd|| / ||omega_sgd|| (Zhao et al. 2018), omega_sgd trained from omega^t on the cohort's
                         data in one place, as often over them and in batches as many times as large as there are clients

Losses are without dropout, with the statistics of BatchNorm that omega^t has. The sum of the gradients is exact, so that nothing
depends on the ranks. A probe costs the ranks two reductions of 8 bytes a parameter and of a row a client, and a gradient (4 bytes a
parameter) for each client that a rank probes.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.federation.messages import NO_RANK
from genfl_mpi.federation.policies import skew
from genfl_mpi.learning.geometry import distance
from genfl_mpi.learning.training import at_round, train
from genfl_mpi.learning.weights import ExactSum
from genfl_mpi.mpi import collectives, failing
from genfl_mpi.util import streams

CHUNK = 512  # samples whose activations are held at once


class Probes:
    """comm: the ranks; config: `Config`; model: the rank's `FlatModel`, which is overwritten; dataset: a `ClientData`; client_images:
    `ClientImages`; note: told of the phase."""

    def __init__(self, comm, config, model, dataset, client_images, note):
        self.comm, self.config, self.model, self.dataset, self.client_images, self.note = (
            comm,
            config,
            model,
            dataset,
            client_images,
            note,
        )
        self.omega_t, self.plan, self.kept = None, None, {}

    def begin(self, round, omega, plan):
        """Begin a round, of which the first is 0. If it is to be probed, remember its weights, float32 (size,), and its plan."""
        every = self.config.probes.every
        self.omega_t, self.kept = None, {}
        if every is not None and (round + 1) % every == 0:
            self.omega_t, self.plan = omega.clone(), plan.copy()

    def keep(self, place, weights):
        """Put the model of the client at a place of the cohort aside, in a round that is probed."""
        if self.omega_t is not None:
            self.kept[place] = weights.to("cpu", copy=True)

    def look(self, round, omega_fl):
        """After a whole round, of which the first is 1: on rank 0 the columns that /probes and /probed_clients get, by table; elsewhere,
        and if there was no probe, none. omega_fl: float64 (size,), the clients' average, on rank 0; None without clients. Collective.
        """
        if self.omega_t is None:
            return {}
        self.note("probe")
        start, cohort = time.perf_counter(), self.plan["client"]
        asked = np.sort(
            streams.generator(self.config.seed, "probe").permutation(self.config.clients)[
                : self.config.probes.clients
            ]
        )
        clients = np.union1d(asked, cohort)
        place_of = {
            client: place
            for place, client in enumerate(cohort.tolist())
            if self.plan["rank"][place] != NO_RANK
        }
        ranks = [
            int(self.plan["rank"][place_of[client]]) if client in place_of else row % self.comm.size
            for row, client in enumerate(clients.tolist())
        ]
        held = self.client_images.real(clients) + self.client_images.generated(clients)
        shares = (
            np.where(np.isin(clients, asked), held.sum(1), 0) / held.sum(1)[np.isin(clients, asked)].sum()
        )
        norms, difference, error = np.zeros(1), np.zeros(len(clients)), np.zeros(len(clients))

        own = [row for row, rank in enumerate(ranks) if rank == self.comm.rank]
        total = ExactSum(np.zeros(self.model.parameters, dtype=np.int64))
        gradients = {}
        for row in own:
            with failing.named(f"the probe of client {clients[row]}"):
                gradients[row] = self._gradient(*self.dataset.of(int(clients[row])))
                total.add(shares[row], gradients[row])
        collectives.sum_everywhere(self.comm, total.units)
        whole = total.value()
        norms[0] = whole.norm()
        for row in own:
            difference[row] = (gradients[row].double() - whole).norm()
            place = place_of.get(int(clients[row]))
            error[row] = (
                self._local_error(int(clients[row]), self.kept[place], round)
                if place in self.kept
                else np.nan
            )
        self.kept = {}
        for values in (difference, error):
            collectives.sum_everywhere(self.comm, values.view(np.int64))
        if self.comm.rank:
            return {}
        histograms = self.dataset.arrays["label_histograms"]
        divergence = self._divergence(omega_fl, round) if omega_fl is not None else np.nan
        return {
            "probed_clients": {
                "round": np.full(len(clients), round),
                "client": clients,
                "samples": held.sum(1),
                "label_emd": skew(held, histograms.sum(0)),
                "labels": (held > 0).sum(1),
                "gradient_difference": difference,
                "local_error": error,
            },
            "probes": {
                "round": [round],
                "gradient_norm": norms,
                "weight_divergence": [divergence],
                "seconds": [time.perf_counter() - start],
            },
        }

    def _load(self, weights):
        model = self.model
        model.load(weights)
        model.module.eval()
        return model

    def _gradient(self, images, labels):
        """grad F_n at omega^t, float32 (parameters,) in the main memory."""
        model = self._load(self.omega_t)
        for part, target in zip(images.split(CHUNK), labels.split(CHUNK)):
            (F.cross_entropy(model.module(part), target, reduction="sum") / len(labels)).backward()
        return model.gradient().cpu()

    @torch.no_grad()
    def _loss(self, weights, images, labels):
        """F_n of float32 weights (size,)."""
        model = self._load(weights)
        return sum(
            F.cross_entropy(model.module(part), target, reduction="sum").item()
            for part, target in zip(images.split(CHUNK), labels.split(CHUNK))
        ) / len(labels)

    def _local_error(self, client, omega_n, round):
        images, labels = self.dataset.of(client)
        before = self._loss(omega_n, images, labels)
        settings = at_round(self.config.training, round - 1).model_copy(
            update={"epochs": self.config.probes.epochs}
        )
        train(
            self.model,
            omega_n,
            images,
            labels,
            settings,
            streams.generator(self.config.seed, "probe", round, client),
        )
        after = self._loss(self.model.weights.clone(), images, labels)
        return before - min(before, after) if np.isfinite(after) else np.nan

    def _divergence(self, omega_fl, round):
        """On rank 0."""
        model, plan = self.model, self.plan[self.plan["rank"] != NO_RANK]
        cohort = plan["client"].tolist()
        images, labels = (torch.cat(parts) for parts in zip(*(self.dataset.of(client) for client in cohort)))
        settings = at_round(self.config.training, round - 1)
        settings = settings.model_copy(
            update={"batch_size": settings.batch_size * len(cohort), "epochs": int(plan["epochs"][0])}
        )
        train(
            model, self.omega_t, images, labels, settings, streams.generator(self.config.seed, "probe", round)
        )
        return (
            distance(omega_fl, model.weights.cpu(), model.parameters)
            / model.weights[: model.parameters].double().norm().item()
        )
