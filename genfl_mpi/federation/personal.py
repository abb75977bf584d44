"""Personal models of the clients, and their evaluation on local test data.

    finetune   the global model, trained for some epochs on the client's data; nothing is kept
    fedper     omega^t with the client's own last layers; the others are averaged
    fedrep     the same; first the last layers are trained with the others fixed, then the others
    ditto      beside omega_n a model v_n: minimise F_n(v) + lambda / 2 |v - omega^t|^2, from its last value

The global model keeps its last layers under fedper and fedrep: clients send those of omega^t. A client that
never trained has no state: its personal model is the global one, also the start of its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.config.sections.personalisation import SPLIT
from genfl_mpi.learning.evaluation import chunks, evaluate
from genfl_mpi.learning.training import settings_at_round, train
from genfl_mpi.mpi import collectives
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError, annotate_errors
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from genfl_mpi.config.sections.local_training import Training
    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.algorithms.interface import Algorithm, Tensors
    from genfl_mpi.federation.client_data import ClientData
    from genfl_mpi.federation.server import Server
    from genfl_mpi.learning.training import Report
    from genfl_mpi.learning.weights import FlatModel
    from genfl_mpi.mpi.collectives import MPI
    from genfl_mpi.results.client_state import ClientStates

STATE = "personal"  # name of the client's array


def check(config: Config, algorithm: Algorithm) -> None:
    """Raise UserError if the clients' personal models do not fit the configuration."""
    method = config.personal.method
    if method == "none":
        return
    if not config.trains_clients:
        raise UserError(f"personal.method={method} needs clients that train; choose another method")
    if config.personal.keeps_state and config.training.clients_per_batch > 1:
        raise UserError(f"personal.method={method} needs training.clients_per_batch=1")
    if config.personal.keeps_state and algorithm.arrays_of_kind("client", 1, config):
        raise UserError(
            f"personal.method={method} keeps a state of each client, and so does "
            f"algorithm.name={config.algorithm.name}; choose one of the two"
        )


class Personalisation:
    """Give a client its own part of the model, and train it. model: the rank's `FlatModel`.

    shapes: {name: shape} of what each client keeps.
    """

    def __init__(self, config: Config, model: FlatModel) -> None:
        self.config, self.model, self.settings = config, model, config.personal
        count = _last_layers(model, self.settings.layers) if self.settings.method in SPLIT else 0
        if count == model.parameters:
            last = counted(self.settings.layers, "layer")
            raise UserError(
                f"personal.method={self.settings.method} keeps the last {last} at the clients, which "
                f"are all that is trained with model.trained={config.model.trained}; "
                "reduce personal.layers, or set model.trained=all"
            )
        self.head = slice(model.parameters - count, model.parameters)
        self.shapes: dict[str, tuple[int, ...]] = {}
        if self.settings.keeps_state:
            kept = len(model.weights) if self.settings.method == "ditto" else count
            self.shapes[STATE] = (kept,)

    def begin(self, omega: torch.Tensor, own: Tensors, since: int) -> torch.Tensor:
        """Return the weights from which a client trains its model of the sum, float32 (size,).

        own: the client's arrays; since: the round that wrote them, 0 if there are none.
        """
        if self.head.start == self.head.stop or not since:
            return omega
        begin = omega.clone()
        begin[self.head] = own[STATE]
        return begin

    def train_head(
        self,
        begin: torch.Tensor,
        images: torch.Tensor,
        labels: torch.Tensor,
        settings: Training,
        round: int,
        client: int,
    ) -> tuple[torch.Tensor, list[Report]]:
        """Train the last layers alone, if the method does. Return the weights, and the training's reports."""
        if self.settings.method != "fedrep" or self.head.start == self.head.stop:
            return begin, []
        rng = streams.generator(self.config.seed, "personal", round, client)
        local = settings.model_copy(update={"epochs": self.settings.epochs})
        with self._frozen(head=False):
            report = train(self.model, begin, images, labels, local, rng)
        return self.model.weights.clone(), [report]

    @contextmanager
    def training_body(self) -> Iterator[None]:
        """Fix the last layers in this context, if the method trains them separately."""
        if self.settings.method != "fedrep" or self.head.start == self.head.stop:
            yield
        else:
            with self._frozen(head=True):
                yield

    def separate(self, omega: torch.Tensor, trained: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        """Return what a client sends, float32 (size,), and what it keeps of its trained weights."""
        if self.head.start == self.head.stop:
            return trained, {}
        kept = {STATE: trained[self.head].clone()}
        sent = trained.clone()
        sent[self.head] = omega[self.head]
        return sent, kept

    def train_beside(
        self,
        omega: torch.Tensor,
        own: Tensors,
        since: int,
        images: torch.Tensor,
        labels: torch.Tensor,
        settings: Training,
        round: int,
        client: int,
    ) -> Tensors:
        """Train the personal model beside the one of the sum, if the method has one. Return what is kept."""
        if self.settings.method != "ditto":
            return {}
        rng = streams.generator(self.config.seed, "personal", round, client)
        local = settings.model_copy(update={"epochs": self.settings.epochs})
        start = own[STATE] if since else omega
        train(self.model, start, images, labels, local, rng, self.settings.pull, anchor=omega)
        return {STATE: self.model.weights.clone()}

    def load(
        self,
        omega: torch.Tensor,
        own: Tensors,
        since: int,
        data: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        round: int,
        client: int,
    ) -> None:
        """Set the rank's model to a client's personal model.

        data: () -> the client's training data; round: finished rounds.
        """
        if self.settings.method == "finetune":
            rng = streams.generator(self.config.seed, "personal", round, client)
            local = settings_at_round(self.config.training, round - 1)
            local = local.model_copy(update={"epochs": self.settings.epochs})
            train(self.model, omega, *data(), local, rng)
        elif self.settings.method == "ditto" and since:
            self.model.load(own[STATE])
        else:
            self.model.load(self.begin(omega, own, since))

    @contextmanager
    def _frozen(self, head: bool) -> Iterator[None]:
        """Fix the last layers, or all others, in this context."""
        start, changed = 0, []
        for parameter in self.model.trained:
            if (start >= self.head.start) == head:
                parameter.requires_grad_(False)
                changed.append(parameter)
            start += parameter.numel()
        try:
            yield
        finally:
            for parameter in changed:
                parameter.requires_grad_(True)


class PersonalEvaluation:
    """Evaluate the personal models of all clients, divided over the ranks.

    data: the run's arrays; states: of the rank, or None; server: on rank 0.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        personal: Personalisation,
        data: dict[str, np.ndarray],
        about: Description,
        clients: ClientData,
        states: ClientStates | None,
        server: Server | None,
    ) -> None:
        self.comm, self.personal, self.data, self.about = comm, personal, data, about
        self.clients, self.states, self.server = clients, states, server

    def evaluate(self, round: int, omega: torch.Tensor) -> dict[str, np.ndarray]:
        """Return the columns of /personal after a round, on rank 0, if it is due. Collective.

        round: finished rounds; omega: float32 (size,), the global weights, on the model's device.
        """
        settings, model = self.personal.settings, self.personal.model
        if settings.method == "none" or round % settings.every:
            return {}
        pointers = self.data["local_test_pointers"]
        number = len(pointers) - 1
        known = np.zeros((number, 5), dtype=np.int64)  # round of the state, then its location
        if self.server and self.states:
            known[:, 0], known[:, 1:] = self.server.trained, self.server.locations
        if self.states:  # 40 bytes a client
            collectives.broadcast(self.comm, known)
        correct = np.zeros((number, 2), dtype=np.int64)
        for client in range(self.comm.rank, number, self.comm.size):
            if pointers[client] == pointers[client + 1]:
                continue
            with annotate_errors(f"client {client}"):
                model.load(omega)
                correct[client, 0] = self._count_correct(client)
                own: Tensors = {}
                if self.states:
                    arrays = self.states.read(client, int(known[client, 0]), known[client, 1:])
                    own = {name: torch.tensor(array, device=omega.device) for name, array in arrays.items()}
                since = int(known[client, 0])
                data = partial(self.clients.load, client)
                self.personal.load(omega, own, since, data, round, client)
                correct[client, 1] = self._count_correct(client)
        collectives.sum_everywhere(self.comm, correct)
        if not self.server:
            return {}
        samples = np.diff(pointers)
        shares = np.where(samples[:, None] > 0, correct / np.maximum(samples, 1)[:, None], np.nan)
        return {
            "round": np.full(number, round),
            "client": np.arange(number),
            "samples": samples,
            "trained": known[:, 0] if self.states else self.server.last.copy(),
            "global_accuracy": shares[:, 0],
            "accuracy": shares[:, 1],
        }

    def _count_correct(self, client: int) -> int:
        """Return the correct predictions of the rank's model on a client's local test data."""
        first, last = self.data["local_test_pointers"][client : client + 2]
        samples = self.data["local_test_indices"][first:last]
        model, size = self.personal.model, self.personal.config.evaluation.batch_size
        images, labels = self.data["test_images"][samples], self.data["test_labels"][samples]
        own = chunks(images, labels, size, self.about, model.weights.device)
        return int(evaluate(model, own, len(self.about.classes), -(-len(samples) // size), True)[:-1].sum())


def _last_layers(model: FlatModel, layers: int) -> int:
    """Return the number of parameters of the model's last layers. Raises UserError if it has fewer."""
    sizes = [
        sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.requires_grad)
        for module in model.module.modules()
    ]
    sizes = [size for size in sizes if size]
    if layers > len(sizes):
        raise UserError(f"personal.layers={layers}: the model has only {len(sizes)} layers with parameters")
    return sum(sizes[len(sizes) - layers :])
