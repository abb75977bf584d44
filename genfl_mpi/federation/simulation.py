"""A run of generative federated learning: its parts, assembled for the rounds of `round.rounds`."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genfl_mpi.config.loading import single
from genfl_mpi.config.settings import Config, fill_in
from genfl_mpi.data import datasets
from genfl_mpi.data.clients import divide, load_once_per_node
from genfl_mpi.federation import (
    algorithms,
    asynchronous,
    differential_privacy,
    personal,
    tiers,
    transforms,
    trials,
)
from genfl_mpi.federation.algorithms.interface import Array
from genfl_mpi.federation.calibrated_head import CalibratedHead
from genfl_mpi.federation.client_data import ClientData
from genfl_mpi.federation.client_images import ClientImages
from genfl_mpi.federation.edge_images import image_seeds
from genfl_mpi.federation.evaluator import Evaluator
from genfl_mpi.federation.messages import RHO, Broadcast, Reduction
from genfl_mpi.federation.parts import Messages, Parts
from genfl_mpi.federation.policies import needs_of
from genfl_mpi.federation.policies.selection import largest_cohort
from genfl_mpi.federation.policy_lookup import find_policies
from genfl_mpi.federation.probes import Probes
from genfl_mpi.federation.questions import Questions
from genfl_mpi.federation.records import Recorder
from genfl_mpi.federation.refinements import needs_models
from genfl_mpi.federation.resident import Resident
from genfl_mpi.federation.robust import attacks, combination
from genfl_mpi.federation.round import rounds
from genfl_mpi.federation.server import Server
from genfl_mpi.federation.shared_generation import SharedGeneration, find_able_ranks
from genfl_mpi.federation.worker import Worker
from genfl_mpi.learning import models
from genfl_mpi.learning.batches import smallest_batch
from genfl_mpi.learning.weights import FlatModel
from genfl_mpi.mpi import collectives, devices, staging
from genfl_mpi.results import sealed_files
from genfl_mpi.results.client_state import ClientStates
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from genfl_mpi.edge.events import Events
    from genfl_mpi.federation.algorithms.interface import Algorithm
    from genfl_mpi.federation.policies import Policy
    from genfl_mpi.federation.records import Record
    from genfl_mpi.mpi.collectives import MPI


class Simulation:
    """One run; iterating over it computes its rounds and yields a `Record` of each.

        for record in Simulation(method="genfl", rounds=10, training={"lr": 0.1}):
            print(record)

    Every rank of `comm` must construct it and iterate over it together.

    source: a YAML file, a dict, a `Config`, or None for the embedded default. overrides: "key=value" strings,
    as on the command line. settings: settings by keyword, which replace those of source and overrides: a
    section is a dict of some of its settings, and dotted names are passed as **{"training.lr": 0.1}.
    `python -m genfl_mpi help` lists all settings.

    select, rho, kappa, plan: policies, functions of a `ServerState`, which replace selection.policy,
    rho.policy, kappa.policy and generation.plan. As dicts, rho and kappa are sections of settings.

    comm: an mpi4py communicator, by default all ranks. folder: where the clients' own arrays are stored, if
    the algorithm has any, by default `variates` in config.output. run: id of the run to which these arrays
    belong, by default a new one. dataset: the arrays of `load_once_per_node`, if several simulations share
    them. note: called as note(phase, client, round=..., done=k, of=n) when this rank begins or continues
    something; done and of count images or clients. leaving: returns an exit status if the ranks were asked to
    leave, else 0; the iteration then ends early, and `left` is the status. Raises UserError on every rank if
    the configuration cannot be run.

    round: finished rounds. weights: float32 (size,), the global weights. client_states: the `ClientStates`,
    or None if the algorithm has none. server: the `Server`; None except on rank 0. message_bytes: of the
    broadcast and of the reduction.
    """

    def __init__(
        self,
        source: str | Path | dict | Config | None = None,
        overrides: Sequence[str] = (),
        *,
        select: Policy | None = None,
        rho: Policy | Mapping[str, Any] | None = None,
        kappa: Policy | Mapping[str, Any] | None = None,
        plan: Policy | None = None,
        comm: MPI.Comm | None = None,
        folder: str | Path | None = None,
        run: str | None = None,
        dataset: dict[str, np.ndarray] | None = None,
        note: Callable[..., None] = lambda *_, **__: None,
        leaving: Callable[[], int] = lambda: 0,
        **settings: Any,
    ) -> None:
        given = {"select": select, "rho": rho, "kappa": kappa, "plan": plan}
        sections = {name: value for name, value in given.items() if isinstance(value, Mapping)}
        policies: dict[str, Callable[..., Any]] = {
            name: value for name, value in given.items() if callable(value)
        }
        config = _configure(source, overrides, settings | sections)
        self.comm, self.left, self.round = comm or collectives.world(), 0, 0
        self.config = config = resolve(config, self.comm)
        self.about = datasets.describe(config.data)
        algorithm = collectives.call_on_all(self.comm, lambda: algorithms.find(config))
        policies = collectives.call_on_all(self.comm, lambda: find_policies(config, policies))
        collectives.call_on_all(self.comm, lambda: personal.check(config, algorithm))
        collectives.call_on_all(self.comm, lambda: combination.check(config, algorithm, policies["rho"]))
        self.device = devices.set_up(self.comm, config.runtime)
        self.device_models = devices.describe_models(self.comm, self.device)
        self._windows: list[tuple[Any, list[weakref.ref]]] = []
        self.data = self._share_data(dataset)
        self.model = self._build_model()
        self.personal = collectives.call_on_all(
            self.comm, lambda: personal.Personalisation(config, self.model)
        )
        outputs = collectives.call_on_all(self.comm, self._check)
        self.state_shapes = self._find_state_shapes(algorithm)
        messages = self._allocate_messages(algorithm)
        self.message_bytes = messages.broadcast.buffer.nbytes, messages.reduction.buffer.nbytes
        self.weights = torch.from_numpy(messages.broadcast.weights)
        self.weights.copy_(self.model.weights)
        able = find_able_ranks(self.comm, config)
        self.server: Server | None = collectives.call_on_all(
            self.comm, lambda: self._make_server(algorithm, policies, able)
        )
        if self.server and config.time.driver == "tiers":
            self.server.cells = tiers.state_arrays(messages)
        self.events: Events | None = None
        if config.time.is_asynchronous:
            plan_events = asynchronous.plan_events
            self.events = collectives.from_rank0(
                self.comm, lambda: plan_events(config, self.server) if self.server else None
            )
        self.client_states = self._open_client_states(folder, run)
        self.parts: Parts | None = self._assemble(messages, algorithm, policies, outputs, note, leaving)

    @property
    def checkpoint_bytes(self) -> int:
        """Return the bytes of a checkpoint, with a state of every client if they have any; on rank 0."""
        states = 4 * sum(map(math.prod, self.state_shapes.values())) * self.config.clients
        server = self.server.state_arrays().values() if self.server else ()
        return self.weights.nbytes + sum(array.nbytes for array in server) + states

    def _share_data(self, dataset: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        """Return the data set and its division over the clients, in memory that the ranks of a node share."""
        if dataset is None:
            dataset = self._keep(*load_once_per_node(self.comm, self.config.data))
        divided = collectives.node_shared(self.comm, lambda: divide(self.config, dataset))
        return {**dataset, **self._keep(*divided)}

    def _keep(self, arrays: dict[str, np.ndarray], window: Any) -> dict[str, np.ndarray]:
        """Remember a window for `close`, with weak references to the arrays of which all others are views."""
        self._windows.append((window, [weakref.ref(array.base) for array in arrays.values()]))
        return arrays

    def _build_model(self) -> FlatModel:
        """Build the model with the run's initial weights."""
        config, about = self.config, self.about
        seed = streams.integer(config.seed, "init")
        module = collectives.call_on_all(
            self.comm, lambda: models.build(config.model, len(about.classes), about.shape, seed)
        )
        model = FlatModel(module, self.device)
        frozen = model.frozen_digest()
        expected = collectives.from_rank0(self.comm, lambda: frozen)

        def check() -> None:
            if frozen != expected:
                raise UserError(
                    f"model.name: the frozen parameters of {config.model.name} differ between ranks, which "
                    "each build them; let them depend on torch's random stream or on a file alone"
                )

        collectives.call_on_all(self.comm, check)
        return model

    def _check(self) -> slice | None:
        """Check settings against the model and the data. Raises UserError.

        Returns the slice of the weights that holds the biases of the model's last layer, or None without an
        audit.
        """
        config = self.config
        attacks.check(config, self.about)
        outputs = self.model.output_biases(len(self.about.classes)) if config.audit else None
        if config.audit and outputs is None:
            raise UserError(
                "audit needs the biases of the model's last layer, and "
                f"model.name={config.model.name} does not end in them; choose another model or audit=false"
            )
        if config.privacy.clip is not None and config.trains_clients:
            if len(self.model.weights) > self.model.parameters:
                raise UserError(
                    f"privacy.clip bounds parameters, and model.name={config.model.name} also averages the "
                    "statistics of its BatchNorm layers; choose a model without"
                )
            differential_privacy.check_rounding(config, self.model.parameters)
        if self.device.type == "cuda" and config.runtime.deterministic:
            models.check_deterministic(self.model.module, self.about.shape, self.device)
        datasets.check_augmentation(config, self.about)
        samples = np.diff(self.data["pointers"]) + config.data.shared
        without_images = config.trains_clients and not (config.sends or config.fills)
        if without_images and 1 in smallest_batch(samples, config.training.batch_size):
            models.check(config.model, len(self.about.classes), self.about.shape, samples=1)
        return outputs

    def _allocate_messages(self, algorithm: Algorithm) -> Messages:
        """Allocate the two messages of a round and the rank's resident buffers."""
        config, size = self.config, len(self.model.weights)
        cohort = largest_cohort(config)
        outputs = len(self.about.classes) if config.audit else 0
        sums = algorithm.arrays_of_kind("sum", self.model.parameters, config)
        if config.rho.over == "selected":
            sums[RHO] = Array((1,), "sum")
        sums |= differential_privacy.sums(config)
        arrays = algorithm.arrays_of_kind("broadcast", self.model.parameters, config)
        arrays |= tiers.broadcast_arrays(config, size)
        stateful = bool(self.state_shapes)
        zeros = partial(staging.zeros, device=self.device)
        broadcast = Broadcast(size, cohort, arrays, stateful, zeros)
        reduction = Reduction(size * config.cells, cohort, self.comm.size, sums, outputs, stateful, zeros)
        resident = Resident(self.comm, self.device, broadcast, reduction, sums, self.data)
        return Messages(broadcast, reduction, resident)

    def _make_server(
        self, algorithm: Algorithm, policies: dict[str, Callable], able: np.ndarray
    ) -> Server | None:
        """Make the server on rank 0. able: as of `ServerImages`."""
        if self.comm.rank:
            return None
        config, about, data, ranks = self.config, self.about, self.data, self.comm.size
        server = Server(config, about, data, self.device, algorithm, policies, ranks, able=able)
        if config.privacy.clip is not None and config.trains_clients:
            server.private = differential_privacy.PrivateSum(
                config,
                differential_privacy.noise_multiplier(config),
                differential_privacy.labels_epsilon(config, server.samples, data["sharing"]),
            )
            differential_privacy.check_noise(config, server.private.multiplier)
        return server

    def _open_client_states(self, folder: str | Path | None, run: str | None) -> ClientStates | None:
        """Return the store of the clients' own arrays, if they have any."""
        if not self.state_shapes:
            return None
        run = run or collectives.from_rank0(self.comm, sealed_files.new_run_id)
        folder = folder or Path(self.config.output) / "variates"
        return ClientStates(folder, self.state_shapes, run, self.comm.rank)

    def _find_state_shapes(self, algorithm: Algorithm) -> dict[str, tuple[int, ...]]:
        """Return {name: shape} of the arrays that each client keeps."""
        kept = algorithm.arrays_of_kind("client", self.model.parameters, self.config)
        kept |= collectives.call_on_all(
            self.comm, lambda: transforms.client_arrays(self.config, self.model.parameters)
        )
        return {name: array.shape for name, array in kept.items()} | self.personal.shapes

    def _assemble(
        self,
        messages: Messages,
        algorithm: Algorithm,
        policies: dict[str, Callable],
        outputs: slice | None,
        note: Callable[..., None],
        leaving: Callable[[], int],
    ) -> Parts:
        """Assemble the parts of the rounds. outputs: of `_check`; note, leaving: as in the constructor."""
        comm, config, about, data = self.comm, self.config, self.about, self.data
        server, joules = self.server, np.nan
        if config.fills:
            joules = collectives.from_rank0(comm, lambda: server.image_joules if server else np.nan)
        images = ClientImages(config, about, data, joules)
        clients = ClientData(data, config, about, messages.resident, images)
        delays = config.trains_clients and "models" in needs_of(policies["rho"])
        asks = config.trains_clients and algorithm.asks(config) is not None
        keeps = delays or asks or needs_models(config)
        worker = Worker(
            comm,
            config,
            algorithm,
            self.model,
            messages,
            self.personal,
            self.client_states,
            clients,
            keeps,
            delays,
            note,
            leaving,
        )
        plan, server_images = messages.broadcast.plan, server.images if server else None
        test_images = messages.resident.test_images
        evaluator = Evaluator(comm, config, about, data, self.model, plan, server_images, test_images)
        combined = None
        if config.uses_slices:
            sizes = len(self.model.weights), self.model.parameters
            combined = combination.Combination(comm, config, *sizes, messages, data["attackers"])
            worker.observers.append(combined.put)
        probes = Probes(comm, config, self.model, clients, images, note)
        worker.observers.append(probes.keep)
        if outputs:
            worker.observers.append(_bias_changes(messages, outputs))
        return Parts(
            comm,
            config,
            server,
            worker,
            messages,
            images,
            Questions(comm, trials.make_questions(config, evaluator, self.model.parameters, plan, worker)),
            combined,
            self._make_recorder(messages, images, clients, probes, evaluator, note),
            note,
            leaving,
            SharedGeneration(comm, config, about, image_seeds(config), note, leaving),
        )

    def _make_recorder(
        self,
        messages: Messages,
        images: ClientImages,
        clients: ClientData,
        probes: Probes,
        evaluator: Evaluator,
        note: Callable[..., None],
    ) -> Recorder:
        """Make the `Recorder`, with the measurements that only some rounds have. Collective."""
        comm, config, about, data, omega = (
            self.comm,
            self.config,
            self.about,
            self.data,
            messages.resident.omega,
        )
        server_images = self.server.images if self.server else None
        everyone = personal.PersonalEvaluation(
            comm, self.personal, data, about, clients, self.client_states, self.server
        )
        success = None
        if config.trains_clients and config.attack.share and config.attack.kind == "backdoor":
            success = partial(attacks.measure_success, comm, self.model, omega, data, config, about)
        head = collectives.call_on_all(
            comm,
            lambda: CalibratedHead(comm, config, about, self.model, clients, server_images, note, evaluator),
        )
        return Recorder(
            config,
            self.device_models,
            data,
            images,
            messages,
            self.model.parameters,
            probes,
            head,
            evaluator,
            success,
            partial(everyone.evaluate, omega=omega),
        )

    def restore(
        self, round: int, weights: Any, state: dict[str, np.ndarray], tables: dict[str, dict]
    ) -> None:
        """Continue after `round` finished rounds. All but `round` is used on rank 0 alone.

        weights: (size,); state: the server's `state_arrays` after that round; tables: the results until then,
        {"clients": {column: array}, "generated": ...}.
        """
        self._open_parts()
        self.round = round
        if self.server:
            self.weights.copy_(torch.as_tensor(weights))
            self.server.restore(state, tables)
            if self.server.private:
                self.server.private.restore(state, round)

    def close(self) -> None:
        """Release the node's shared memory. Collective. Afterwards the simulation cannot be iterated over.

        Memory stays valid for as long as a rank refers to an array in it, such as one taken from `data`: it
        is then released only when MPI ends.
        """
        self.parts = self.server = None
        self.data.clear()  # in place: the parts share this dict
        if any(array() is not None for _, arrays in self._windows for array in arrays):
            gc.collect()
        for window, arrays in self._windows:
            in_use = any(array() is not None for array in arrays)
            if not collectives.maximum(self.comm, int(in_use)):
                window.Free()
        self._windows.clear()
        self.model.cached_steps.clear()  # they refer to the model, and hold its CUDA graphs
        self.model.last_steps = ()

    def __repr__(self) -> str:
        config = self.config
        size = f"{counted(config.clients, 'client')}, a cohort of {config.cohort}"
        return f"<Simulation of {config.method}: {self.round} of {config.rounds} rounds, {size}>"

    def _open_parts(self) -> Parts:
        """Return the parts. Raises UserError after `close`."""
        if self.parts is None:
            raise UserError("this simulation is closed, and its data are released; construct a new one")
        return self.parts

    @property
    def is_server(self) -> bool:
        """Whether this rank is rank 0, whose records are complete."""
        return self.comm.rank == 0

    def __iter__(self) -> Iterator[Record]:
        parts = self._open_parts()
        if self.round == self.config.rounds:
            return
        head = parts.messages.broadcast.head
        if self.events is not None:
            driver = asynchronous.rounds(parts, self.events, self.round)
        else:
            driver = (tiers.rounds if self.config.time.driver == "tiers" else rounds)(parts, self.round)
        for record in driver:
            self.round = record.round
            self.left = int(head["leave"])
            yield record
            self._open_parts()  # the caller may have closed it
        self.left = int(head["leave"])


def _configure(
    source: str | Path | dict | Config | None, overrides: Sequence[str], settings: Mapping[str, Any]
) -> Config:
    """Read the configuration of a run. Raises UserError."""
    if functions := [key for key, value in settings.items() if callable(value)]:
        raise UserError(
            f"{functions[0]} is a function, not a setting; pass policies as select=, rho=, kappa= or plan="
        )
    if not isinstance(source, Config):
        return single(source, overrides, settings)
    if overrides or settings:
        raise UserError(
            "overrides and settings go with a file, a dict or the default; change a Config itself with "
            "model_copy"
        )
    return source


def _bias_changes(messages: Messages, outputs: slice) -> Callable[[int, torch.Tensor], None]:
    """Make an observer that records how the biases of each client's last layer changed.

    outputs: their slice of the weights.
    """

    def observe(place: int, weights: torch.Tensor) -> None:
        change = weights[outputs].cpu() - messages.resident.omega[outputs].cpu()
        messages.reduction.outputs[place] = change.numpy()

    return observe


def resolve(config: Config, comm: MPI.Comm) -> Config:
    """Fill in everything that the machine or another setting decides. Collective."""
    return fill_in(config, *devices.resolve(comm, config.runtime))
