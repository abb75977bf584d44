"""A run of generative federated learning: its parts put together, for the rounds of `round.rounds`."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from genfl_mpi.config.loading import single
from genfl_mpi.config.settings import Config, filled_in
from genfl_mpi.data import datasets
from genfl_mpi.data.clients import divide, load_once_a_node
from genfl_mpi.federation import algorithms, trials
from genfl_mpi.federation.client_data import ClientData
from genfl_mpi.federation.client_images import ClientImages
from genfl_mpi.federation.messages import Broadcast, Reduction
from genfl_mpi.federation.policies import needed
from genfl_mpi.federation.policy_lookup import find_policies
from genfl_mpi.federation.probes import Probes
from genfl_mpi.federation.questions import Questions
from genfl_mpi.federation.resident import Resident
from genfl_mpi.federation.round import Parts, rounds
from genfl_mpi.federation.server import Server
from genfl_mpi.federation.worker import Worker
from genfl_mpi.learning import models
from genfl_mpi.learning.batches import smallest_batch
from genfl_mpi.learning.evaluation import chunks, evaluate, summarise
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.mpi import collectives, devices, staging
from genfl_mpi.results import sealed_files
from genfl_mpi.results.client_state import ClientStates
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError


class Simulation:
    """One run; iterating over it computes its rounds. Every rank of `comm` must construct and iterate together.

    source: a YAML file, a dict, a `Config`, or None for the embedded default; overrides: "key=value" strings, as on the
    command line. comm: an mpi4py communicator, by default all ranks. folder: where clients keep their own arrays, if the
    algorithm has such, by default `variates` in config.output. run: the id of the run that these are of, by default a new one. dataset: the arrays of `load_once_a_node`, where several
    simulations share them. note: a function that is told (phase, client, round) of what
    this rank begins. leaving: a function that returns an exit status when the ranks were asked to leave, and else 0: the
    iteration then ends early, and `left` has the status. policies: functions of a `ServerState` named select, rho, kappa or
    plan, that take the place of the configured ones.
    Raises UserError on every rank if the configuration cannot be run.

    round: rounds that are finished. weights: float32 (size,), the global weights. client_states: the `ClientStates`, or None if
    the algorithm has none. server: the `Server` on rank 0, elsewhere None. message_bytes: of the broadcast and of the reduction.
    """

    def __init__(
        self,
        source=None,
        overrides=(),
        *,
        comm=None,
        folder=None,
        run=None,
        dataset=None,
        note=lambda *_, **__: None,
        leaving=lambda: 0,
        **policies,
    ):
        if unknown := set(policies) - {"select", "rho", "kappa", "plan"}:
            raise UserError(
                f"there is no policy {unknown.pop()!r}; policies are select, rho, kappa and plan; "
                "the configuration's `selection` is given as select"
            )
        if isinstance(source, Config) and overrides:
            raise UserError(
                "overrides go with a file, a dict or the default; change a Config itself with model_copy"
            )
        self.comm, self.left, self.round = comm or collectives.world(), 0, 0
        self.config = config = resolve(
            source if isinstance(source, Config) else single(source, overrides), self.comm
        )
        self.about = about = datasets.describe(config.data)
        algorithm = collectives.together(self.comm, lambda: algorithms.find(config))
        policies = collectives.together(self.comm, lambda: find_policies(config, policies))
        self.device = devices.use(self.comm, config.runtime.threads, config.runtime.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.runtime.tf32
        self._windows = []
        if dataset is None:
            dataset, window = load_once_a_node(self.comm, config.data)
            self._windows.append(window)
        divided, window = collectives.node_shared(self.comm, lambda: divide(config, dataset))
        self._windows.append(window)
        self.data = {**dataset, **divided}
        module = collectives.together(
            self.comm,
            lambda: models.build(
                config.model, len(about.classes), about.shape, streams.integer(config.seed, "init")
            ),
        )
        self.model = FlatModel(module, self.device)
        outputs = collectives.together(self.comm, self._check)

        size, cohort, declared = (
            len(self.model.weights),
            config.cohort if config.trains_clients else 0,
            partial(algorithm.declared, parameters=self.model.parameters, config=config),
        )
        zeros = partial(staging.zeros, device=self.device)
        message = Broadcast(size, cohort, declared("broadcast"), zeros)
        reduction = Reduction(
            size, cohort, self.comm.size, declared("sum"), len(about.classes) if config.audit else 0, zeros
        )
        self.weights = torch.from_numpy(message.weights)
        self.weights.copy_(self.model.weights)
        resident = Resident(
            self.comm, self.device, message, reduction, declared("sum"), self.data["train_images"]
        )
        self.server = collectives.together(
            self.comm,
            lambda: (
                None
                if self.comm.rank
                else Server(config, about, self.data, self.device, algorithm, policies, self.comm.size)
            ),
        )
        joules = collectives.from_rank0(self.comm, lambda: self.server.image_joules) if config.fills else None
        images = ClientImages(config, about, self.data, joules)
        clients = ClientData(self.data, config, about, resident, images)
        kept = declared("client")
        self.client_states = None
        if kept:
            run = run or collectives.from_rank0(self.comm, sealed_files.new_run)
            shapes = {name: array.shape for name, array in kept.items()}
            self.client_states = ClientStates(folder or Path(config.output) / "variates", shapes, run)
        keeps_models = config.trains_clients and "models" in needed(policies["rho"])
        worker = Worker(
            self.comm,
            config,
            algorithm,
            self.model,
            message,
            reduction,
            resident,
            self.client_states,
            clients,
            keeps_models,
            note,
            leaving,
        )
        questions = trials.questions(
            self.comm,
            config,
            about,
            self.data,
            self.model,
            message.plan,
            self.server.images if self.server else None,
            worker,
        )
        probes = Probes(self.comm, config, self.model, clients, images, note)
        worker.observers.append(probes.keep)
        if config.audit:
            worker.observers.append(_bias_changes(reduction, resident, outputs))
        self.message_bytes = message.buffer.nbytes, reduction.buffer.nbytes
        self.parts = Parts(
            self.comm,
            config,
            self.data,
            self.server,
            worker,
            message,
            reduction,
            resident,
            images,
            Questions(self.comm, questions),
            probes,
            self._evaluate,
            note,
            leaving,
        )

    def _check(self):
        """The slice of the weights with the biases of the model's last layer, if they are audited. Raises UserError for settings that do
        not go with the model or the data."""
        config, side = self.config, min(self.about.shape[1:])
        outputs = self.model.outputs(len(self.about.classes)) if config.audit else None
        if config.audit and outputs is None:
            raise UserError(
                "audit looks at the biases of the model's last layer, and "
                f"model.name={config.model.name} does not end in them"
            )
        for section in ("training", "augmented"):
            if (crop := getattr(config, section).crop) >= side:
                raise UserError(f"{section}.crop={crop} must be less than the images' side, {side}")
        samples = np.diff(self.data["pointers"]) + config.data.shared
        without_images = config.trains_clients and not (config.sends or config.fills)
        if without_images and 1 in smallest_batch(samples, config.training.batch_size):
            models.check(config.model, len(self.about.classes), self.about.shape, samples=1)
        return outputs

    def restore(self, round, weights, state, tables):
        """Continue after `round` finished rounds. On rank 0 alone: the weights, the server's `state_arrays` then, and the tables of the
        results until then, {"clients": {column: array}, "generated": ...}."""
        self.round = round
        if self.server:
            self.weights.copy_(torch.as_tensor(weights))
            self.server.restore(state, tables)

    def close(self):
        """Give the node's shared memory back; collective. For scripts that make many simulations."""
        self.data = None
        for window in self._windows:
            window.Free()

    @property
    def is_server(self):
        """Whether this rank is rank 0, whose records are whole."""
        return self.server is not None

    def __iter__(self):
        if self.round == self.config.rounds:
            return
        for record in rounds(self.parts, self.round):
            self.round = record.round
            self.left = int(self.parts.message.head["leave"])
            yield record
        self.left = int(self.parts.message.head["leave"])

    def _evaluate(self):
        """(accuracy, loss, accuracy per class) of omega^t on the test set, whose chunks are divided over the ranks."""
        size, labels = self.config.evaluation.batch_size, self.data["test_labels"]
        self.model.load(self.parts.resident.omega)
        own = chunks(
            self.data["test_images"], labels, size, self.about, self.device, self.comm.rank, self.comm.size
        )
        totals = evaluate(self.model, own, len(self.about.classes), -(-len(labels) // size))
        collectives.sum_everywhere(self.comm, totals)
        return summarise(totals, np.bincount(labels, minlength=len(self.about.classes)))


def _bias_changes(reduction, resident, outputs):
    """An observer that notes how the biases of each client's last layer changed. outputs: their slice of the weights."""

    def observe(place, weights):
        reduction.outputs[place] = (weights[outputs].cpu() - resident.omega[outputs].cpu()).numpy()

    return observe


def resolve(config, comm):
    """`config` with everything filled in that the machine or another setting decides. Collective."""
    return filled_in(config, *devices.resolve(comm, config.runtime))
