"""Probes: measure how a round's clients differ, by the quantities of the theory. They do not affect the run.

With F_n the mean loss of client n over its training data, and F = sum |D_n| F_n / sum |D_n| over the probed
clients:

    gradient difference  ||grad F_n - grad F|| at omega^t; delta_n is its maximum over the rounds
    local error          F_n(omega_n^t) - F_n(omega_n*), of a client that trained; the minimum is approximated
                         by the loss after probes.epochs more epochs of its training, if that is lower
    weight divergence    ||omega_fl - omega_sgd|| / ||omega_sgd|| (Zhao et al. 2018); omega_sgd is trained
                         from omega^t on the cohort's pooled data, with the same number of epochs, and the
                         batch size times the number of clients

Losses are computed without dropout, with the BatchNorm statistics of omega^t. The sum of the gradients is
exact, so results do not depend on the number of ranks. A probe costs two reductions, of 8 bytes a parameter
and of a row a client, and a gradient (4 bytes a parameter) for each client that a rank probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation.messages import NO_RANK
from genfl_mpi.learning.geometry import distance
from genfl_mpi.learning.training import settings_at_round, train
from genfl_mpi.learning.weights import ExactSum
from genfl_mpi.mpi import collectives
from genfl_mpi.util import streams
from genfl_mpi.util.errors import annotate_errors

if TYPE_CHECKING:
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.client_data import ClientData
    from genfl_mpi.federation.client_images import ClientImages
    from genfl_mpi.learning.weights import FlatModel
    from genfl_mpi.mpi.collectives import MPI

CHUNK = 512  # samples in one forward pass, which bounds the memory of activations


class Probes:
    """Probe the rounds that probes.every selects.

    comm: the ranks; model: the rank's `FlatModel`, which is overwritten; note: called with the phase.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        config: Config,
        model: FlatModel,
        dataset: ClientData,
        client_images: ClientImages,
        note: Callable[..., object],
    ) -> None:
        self.comm, self.config, self.model = comm, config, model
        self.dataset, self.client_images, self.note = dataset, client_images, note
        self.omega_t: torch.Tensor | None = None
        self.plan: np.ndarray = np.zeros(0)
        self.kept: dict[int, torch.Tensor] = {}

    def begin(self, round: int, omega: torch.Tensor, plan: np.ndarray) -> None:
        """Begin a round. If it is probed, copy its weights, float32 (size,), and its plan. round: from 0."""
        every = self.config.probes.every
        self.omega_t, self.kept = None, {}
        if every is not None and (round + 1) % every == 0:
            self.omega_t, self.plan = omega.clone(), plan.copy()

    def keep(self, place: int, weights: torch.Tensor) -> None:
        """Copy a client's trained model, if the round is probed. place: position in the cohort."""
        if self.omega_t is not None:
            self.kept[place] = weights.to("cpu", copy=True)

    def measure(self, round: int, omega_fl: torch.Tensor | None) -> dict[str, dict[str, Any]]:
        """Probe a complete round and return new columns of /probes and /probed_clients by table. Collective.

        Returns {} on other ranks than 0, and if the round is not probed. round: starts at 1. omega_fl:
        float64 (size,), the clients' average, on rank 0; None without clients.
        """
        if self.omega_t is None:
            return {}
        self.note("probe")
        start, cohort = time.perf_counter(), self.plan["client"]
        order = streams.generator(self.config.seed, "probe").permutation(self.config.clients)
        probed = np.sort(order[: self.config.probes.clients])
        clients = np.union1d(probed, cohort)
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
        is_probed = np.isin(clients, probed)
        shares = np.where(is_probed, held.sum(1), 0) / held.sum(1)[is_probed].sum()
        difference, error = np.zeros((2, len(clients)))

        rows = [row for row, rank in enumerate(ranks) if rank == self.comm.rank]
        total = ExactSum(np.zeros(self.model.parameters, dtype=np.int64))
        gradients = {}
        for row in rows:
            with annotate_errors(f"the probe of client {clients[row]}"):
                gradients[row] = self._gradient(self.omega_t, *self.dataset.load(int(clients[row])))
                total.add(shares[row], gradients[row])
        collectives.sum_everywhere(self.comm, total.units)
        gradient = total.value()
        for row in rows:
            difference[row] = (gradients[row].double() - gradient).norm()
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
        divergence = self._divergence(self.omega_t, omega_fl, round) if omega_fl is not None else np.nan
        return {
            "probed_clients": {
                "round": np.full(len(clients), round),
                "client": clients,
                "samples": held.sum(1),
                "label_emd": earth_movers_distance(held, histograms.sum(0)),
                "labels": (held > 0).sum(1),
                "gradient_difference": difference,
                "local_error": error,
            },
            "probes": {
                "round": [round],
                "gradient_norm": [gradient.norm().item()],
                "weight_divergence": [divergence],
                "seconds": [time.perf_counter() - start],
            },
        }

    def _load(self, weights: torch.Tensor) -> FlatModel:
        """Load weights into the model, and switch it to evaluation mode."""
        model = self.model
        model.load(weights)
        model.module.eval()
        return model

    def _gradient(self, omega: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return grad F_n at omega, float32 (parameters,) on the CPU."""
        model = self._load(omega)
        for part, target in zip(images.split(CHUNK), labels.split(CHUNK)):
            (F.cross_entropy(model.module(part), target, reduction="sum") / len(labels)).backward()
        return model.gradient().cpu()

    @torch.no_grad()
    def _loss(self, weights: torch.Tensor, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Return F_n of float32 weights (size,)."""
        model = self._load(weights)
        return sum(
            F.cross_entropy(model.module(part), target, reduction="sum").item()
            for part, target in zip(images.split(CHUNK), labels.split(CHUNK))
        ) / len(labels)

    def _local_error(self, client: int, omega_n: torch.Tensor, round: int) -> float:
        """Return F_n(omega_n) minus the loss after more training, at least 0; NaN if that is not finite."""
        images, labels = self.dataset.load(client)
        before = self._loss(omega_n, images, labels)
        settings = settings_at_round(self.config.training, round - 1).model_copy(
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

    def _divergence(self, omega: torch.Tensor, omega_fl: torch.Tensor, round: int) -> float:
        """Return the weight divergence of omega_fl. Only on rank 0."""
        model, plan = self.model, self.plan[self.plan["rank"] != NO_RANK]
        cohort = plan["client"].tolist()
        images, labels = (
            torch.cat(parts) for parts in zip(*(self.dataset.load(client) for client in cohort))
        )
        settings = settings_at_round(self.config.training, round - 1)
        settings = settings.model_copy(
            update={"batch_size": settings.batch_size * len(cohort), "epochs": int(plan["epochs"][0])}
        )
        train(model, omega, images, labels, settings, streams.generator(self.config.seed, "probe", round))
        return (
            distance(omega_fl, model.weights.cpu(), model.parameters)
            / model.weights[: model.parameters].double().norm().item()
        )
