"""The server on rank 0: it chooses the cohort, its weights and its ranks, and keeps what outlasts a round."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genfl_mpi.config import functions
from genfl_mpi.data import datasets
from genfl_mpi.edge import cells
from genfl_mpi.edge.attendance import AGGREGATED, DECLINED, NOT_FINITE, STATUS_DTYPE, VOID
from genfl_mpi.federation import algorithms, participation, refinements, transforms
from genfl_mpi.federation.algorithms.interface import Cohort
from genfl_mpi.federation.client_images import ClientImages
from genfl_mpi.federation.edge_images import EdgeImages
from genfl_mpi.federation.messages import CLIENT_FIELDS, NO_RANK
from genfl_mpi.federation.policies import UNSET, ServerState, needs_of
from genfl_mpi.federation.policy_lookup import POLICIES, find_policies
from genfl_mpi.federation.server_images import ServerImages
from genfl_mpi.federation.simulated_world import SimulatedWorld
from genfl_mpi.generation import plans
from genfl_mpi.learning.batches import local_batches
from genfl_mpi.mpi.schedule import Pace, assign
from genfl_mpi.results.client_state import NOWHERE
from genfl_mpi.util.errors import UserError, annotate_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.algorithms.interface import Algorithm
    from genfl_mpi.federation.differential_privacy import PrivateSum
    from genfl_mpi.federation.messages import Broadcast
    from genfl_mpi.federation.trials import Trials
    from genfl_mpi.generation.bank import Batch

# Prefixes of names in the checkpoint: memory of policies and of the algorithm, and measured speeds.
POLICY, ALGORITHM, PACE = "policy.", "algorithm.", "pace."
CELL = "cell."  # of tiers: the cells' models, and their shares of the next average at the cloud
VERSION = "version."  # earlier weights, from which clients of an asynchronous run started
# In the checkpoint: the round of each client's last training, and where its state lies.
TRAINED, LOCATIONS = "trained", "locations"


class Server:
    """Decide what rank 0 decides in a round, and remember what later rounds need.

    data: the arrays of `load_and_divide`; the server uses the clients' sizes, the labels that they share, and
    the public pool. device: where it classifies images. policies: of `find_policies`. ranks: of the
    communicator. planned, able: as of `ServerImages`.

    state: the `ServerState` of the round. images: its `ServerImages`. memory: {name: float64 tensor}, the
    algorithm's server arrays. cohort: its `Cohort`, with the rho of the members expected to be aggregated.
    status: STATUS (cohort,), what becomes of each member.
    """

    def __init__(
        self,
        config: Config,
        about: Description,
        data: dict[str, np.ndarray],
        device: torch.device,
        algorithm: Algorithm,
        policies: dict[str, Callable],
        ranks: int,
        planned: AbstractSet[Batch] = frozenset(),
        able: np.ndarray | None = None,
    ) -> None:
        self.config, self.algorithm = config, algorithm
        self.select_policy, self.rho_policy = policies["select"], policies["rho"]
        self.kappa_policy = policies["kappa"]
        # of each client, without generated images
        self.samples = np.diff(data["pointers"]) + config.data.shared
        self.private: PrivateSum | None = None  # with differential privacy, set by `Simulation`
        self.world: SimulatedWorld | None = None
        self.image_joules = np.nan  # without a world
        if config.world:
            self.world = SimulatedWorld(config, about, self.samples, data["shared_labels"])
            self.image_joules = self.world.image_joules
        plan, samples = policies["plan"], self.samples
        if config.fills:
            wanted, largest, share = ClientImages(config, about, data, self.image_joules).demand()
            plan, samples = _all_at_once(largest), self.samples + wanted
            if self.world:
                self.world.set_wanted_images(wanted, share)
        self.about, self.refinements = about, refinements.find(config)
        self.images = ServerImages(config, about, data, device, plan, planned, able)
        if config.time.generators == "edges" and config.generates:
            assert config.world is not None
            self.images = EdgeImages(self.images, cells.nearest(config.world, config.clients)[0])
        # of each client: the round, loss and update norm of its last training
        self.last = np.zeros(config.clients, dtype=np.int64)
        self.losses, self.norms = np.full((2, config.clients), np.nan)
        self.state = ServerState(
            0,
            config,
            samples,
            data["shared_labels"],
            generated=self.images.made_of_label,
            last=self.last,
            losses=self.losses,
            norms=self.norms,
        )
        self.pace, self.seconds_of_others = Pace(ranks), 0.0
        # What policies remember, by name: after the last complete round, and in the current one.
        with_memory = [name for name in POLICIES if "memory" in needs_of(policies[name])]
        self.remembered: dict[str, dict] = {name: {} for name in with_memory}
        self.memories: dict[str, dict] = {}
        self.memory: dict[str, torch.Tensor] = {}
        self.versions: dict[int, torch.Tensor] = {}  # of an asynchronous run, earlier ones still needed
        self.cells: dict[str, np.ndarray] = {}  # of tiers, set by `Simulation`
        keeps = (
            algorithm.arrays_of_kind("client", 1, config)
            or config.personal.keeps_state
            or transforms.client_arrays(config, 1)
        )
        # round of each client's last training
        self.trained = np.zeros(config.clients if keeps else 0, dtype=np.int64)
        # of each client's state: LOCATION of `client_state`
        self.locations = np.full((len(self.trained), 4), NOWHERE, dtype=np.int64)
        self.willing = np.ones(0, dtype=bool)  # which members of the cohort do not decline
        self.status = np.empty(0, STATUS_DTYPE)
        none = np.zeros(0, dtype=np.int64)
        self.cohort = Cohort(none, none, none, np.zeros(0))

    def select(self, round: int, message: Broadcast) -> None:
        """Choose the cohort of a round, its rho and its ranks; write them into the message to all ranks.

        Clients that are sent images are only chosen here: which of them participate depends on the images.
        """
        for name, values in self.algorithm.broadcast(self.memory, self.config).items():
            message.arrays[name][...] = values
        self.memories = deepcopy(self.remembered)
        self.state = replace(self.state, round=round, cohort=UNSET, forecast=UNSET, available=None)
        self._count_images()
        if self.world:
            forecast = self.world.forecast(round, self._local_epochs(), **self._expected_images())
            self.state = replace(self.state, forecast=forecast, available=self.world.available(forecast))
        if not self.config.trains_clients:
            self._divide_generation(np.zeros(0), np.ones(1))
            return
        with annotate_errors(f"the selection policy {functions.name_of(self.select_policy)}"):
            cohort, self.willing = participation.choose(
                self.select_policy, replace(self.state, memory=self.memories.get("select", UNSET))
            )
        self.state = replace(self.state, cohort=cohort)
        message.head["cohort"] = len(cohort)
        if self.private:
            message.head["clip"], message.head["multiplier"] = self.private.clip, self.private.multiplier
        plan = message.plan
        plan["client"], plan["rho"], plan["rank"], plan["epochs"] = (
            cohort,
            0.0,
            NO_RANK,
            self._local_epochs(cohort),
        )
        plan["since"] = self.trained[cohort] if len(self.trained) else 0
        if len(message.locations):  # none in a plan, which trains no client
            message.locations[:] = self.locations[cohort]
        if self.config.sends:
            self._divide_generation(np.zeros(0), np.ones(1))
        else:
            self._admit(plan)

    def send(self, plan: np.ndarray) -> None:
        """Count the round's images as samples of all clients, and complete the `plan` of `select`."""
        self._count_images()
        self._admit(plan, pool=self.state.images, new=self.images.new)

    def _admit(self, plan: np.ndarray, **images: int) -> None:
        """Decide which members of the cohort participate, with which weight and on which rank.

        images: pool and new, of the images that the clients are sent, as in `SimulatedWorld.attend`.
        """
        ids, epochs = np.asarray(self.state.cohort), plan["epochs"].copy()
        self.status = participation.attend(self.world, self.state.round, ids, self.willing, epochs, **images)
        counted = self.status == AGGREGATED
        self.cohort = Cohort(ids, self.state.samples[ids], epochs, np.zeros(len(ids)))
        weighed = self.status != DECLINED if self.config.rho.over == "selected" else counted
        if weighed.any() and "models" not in needs_of(self.rho_policy):
            self.weigh(plan, weighed)
        if self.config.uses_slices:  # which replace the sum
            plan["rho"] = 0.0
        rates, costs = self.pace.rates(), self.cohort.samples[counted] * epochs[counted] + self.pace.overhead
        if not self.config.sends:
            self._divide_generation(costs, rates)
        busy = self.images.busy_seconds(self.state, rates[0])
        plan["rank"][counted] = ranks = assign(costs, rates, busy, self.config.training.clients_per_batch)
        self.seconds_of_others = self.pace.seconds_of_others(costs, ranks)

    def _divide_generation(self, costs: np.ndarray, rates: np.ndarray) -> None:
        """Divide the round's generation over the ranks, unless rank 0 alone is predicted to finish earlier.

        costs, rates: of the clients that train at the same time, as of `assign`.
        """
        images = self.images
        images.divide(self.state)
        if not images.division:
            return
        together = self.config.training.clients_per_batch

        def end(before: float) -> float:
            busy = images.busy_seconds(self.state, rates[0])
            if not np.isfinite(busy) or not len(costs):
                return before + busy
            finish = np.bincount(assign(costs, rates, busy, together), costs, len(rates)) / rates
            finish[0] += busy
            return before + finish.max()

        division = images.division
        shared = end(division.seconds)
        images.division = None
        alone = end(0.0 if self.config.augments else images.generation_seconds(self.state))
        if alone >= shared or not np.isfinite(shared):
            images.division = division

    def begin(self, round: int) -> None:
        """Begin images and augmented model of an asynchronous run from the version after `round` rounds."""
        self.state = replace(self.state, round=round, cohort=UNSET, forecast=UNSET, available=None)

    def receive(self, round: int, plan: np.ndarray, status: np.ndarray) -> None:
        """Take the updates of an asynchronous round. plan: their rows; status: STATUS (K,)."""
        ids = plan["client"].astype(np.int64)
        self.begin(round)
        self.state = replace(self.state, cohort=ids)
        self._count_images()
        self.cohort = Cohort(ids, self.samples[ids], plan["epochs"].copy(), plan["rho"].copy())
        self.status = status

    def planned_service(self) -> Callable[[int], float]:
        """Return how long images and augmented model take in the world: (version) -> s, called in order."""
        world, generated = self.world, self.state.generated.copy()
        assert world is not None

        def seconds(version: int) -> float:
            nonlocal generated
            new = 0
            if self.config.generates:
                counts = self.images.counts(replace(self.state, round=version, generated=generated))
                assert counts is not None
                new, generated = counts.sum(), generated + counts
            pool = generated.sum() if self.config.generates else len(self.images)
            return world.augmented_seconds(new, pool)

        return seconds

    def weigh(self, plan: np.ndarray, counted: np.ndarray, **known: Any) -> None:
        """Call the rho policy, and write the coefficients of the cohort's models into `plan`.

        counted: bool (cohort,), the members that the policy weighs; the others get 0. known: fields of the
        `ServerState` that are known only after training. Raises UserError if the policy does not return
        weights.
        """
        ids = self.cohort.ids[counted]
        state = replace(self.state, cohort=ids, memory=self.memories.get("rho", UNSET), **known)
        with annotate_errors(f"the rho policy {functions.name_of(self.rho_policy)}"):
            rho = np.asarray(self.rho_policy(state), dtype=np.float64)
        if rho.shape != ids.shape or not (rho >= 0).all() or abs(rho.sum() - 1) > 1e-9:
            raise UserError(
                f"the rho policy {functions.name_of(self.rho_policy)} must return a weight >= 0 for each "
                f"client of the cohort, with sum 1, not {rho}"
            )
        shares = np.zeros(len(counted))
        shares[counted] = rho
        self.cohort = self.cohort._replace(rho=shares)
        plan["rho"] = self.algorithm.coefficients(self.cohort, self.config)
        if self.private:
            plan["rho"] = np.where(counted, 1 / self.config.cohort, 0.0)

    def weigh_models(
        self, plan: np.ndarray, rows: np.ndarray, omega: np.ndarray, parameters: int, trials: Trials
    ) -> None:
        """Call a rho policy that needs the trained models.

        rows: float64 (cohort, CLIENT_FIELDS), of all ranks; omega: float32 (size,), omega^t. The policy does
        not weigh clients that were dropped, and is not called in an incomplete round.
        """
        reports = dict(zip(CLIENT_FIELDS, rows.T))
        counted = np.isfinite(reports["update_norm"])
        if not (reports["samples"].all() and counted.any()):
            return

        def average(coefficients: np.ndarray) -> np.ndarray:
            """Sum the models exactly with float64 coefficients (K,) in [0, 1]: float32 (size,)."""
            every = np.zeros(len(counted))
            every[counted] = coefficients
            return trials.average(every, reports["largest_weight"])

        self.weigh(
            plan,
            counted,
            reports={name: column[counted] for name, column in reports.items()},
            weights=omega,
            parameters=parameters,
            judge=self._judge(trials),
            average=average,
            cosines=lambda weights: trials.cosines(weights)[counted],
        )

    def kappa2(
        self,
        omega: torch.Tensor,
        omega_fl: torch.Tensor | None,
        omega_a: torch.Tensor | None,
        parameters: int,
        trials: Trials,
    ) -> tuple[float, ServerState | None]:
        """Return the augmented model's weight in Eq. (1), and the `ServerState` that the kappa policy got.

        In a void round it is 0: omega_fl is omega^t, and the weights stay. If one of the two models is
        missing, the other has the whole weight. In both cases the policy is not called: the state is None.
        Raises UserError if the policy returns no number in [0, 1].
        """
        if omega_a is None or omega_fl is None or (self.is_void and not self.private):
            return (1.0 if omega_fl is None and omega_a is not None else 0.0), None
        forecast = self.state.forecast
        if self.world and forecast:
            joules = self.world.augmented_joules(self.images.new, len(self.images))
            forecast = replace(forecast, augmented_joules=joules)
        state = replace(
            self.state,
            cohort=self.cohort.ids[self.status == AGGREGATED],
            weights=omega.numpy(),
            fl_weights=omega_fl.float().numpy(),
            augmented_weights=omega_a.numpy(),
            parameters=parameters,
            judge=self._judge(trials),
            images=len(self.images),
            forecast=forecast,
            memory=self.memories.get("kappa", UNSET),
        )
        name = f"the kappa policy {functions.name_of(self.kappa_policy)}"
        with annotate_errors(name):
            returned = self.kappa_policy(state)
            kappa2 = np.asarray(returned)
        if kappa2.ndim or kappa2.dtype.kind not in "iuf" or not 0 <= kappa2 <= 1:
            raise UserError(f"{name} returned {returned!r}; kappa2 must lie in [0, 1], as a number")
        return float(kappa2), state

    @property
    def is_void(self) -> bool:
        """Whether too few clients of the round survived to unmask their sum."""
        return bool((self.status == VOID).any())

    def note(self, clients: dict[str, np.ndarray], records: np.ndarray) -> None:
        """Remember a complete round: its policies' memory, and how its clients trained.

        clients: columns of /clients; records: of the `Reduction`.
        """
        self.remembered = self.memories
        if self.private:
            self.private.commit()
        if len(self.trained):
            wrote = records[:, 0] > 0
            who, ranks = clients["client"][wrote], clients["rank"][wrote].astype(np.int64)
            offsets, checksums = (records[wrote] - (1, 0)).T
            self.trained[who] = now = self.state.round + 1
            self.locations[who] = np.stack([np.full(len(who), now), ranks, offsets, checksums], 1)
        self._note_clients(clients)

    def replay(self, clients: dict[str, np.ndarray], generated: dict[str, np.ndarray]) -> None:
        """Replay the stored rounds of a continued run: how clients trained, and which images they were sent.

        clients, generated: columns of /clients and /generated.
        """
        if self.config.time.is_asynchronous:
            return  # nothing that later rounds need
        for round in np.unique(clients["round"]):
            rows = {name: column[clients["round"] == round] for name, column in clients.items()}
            images = {}
            if self.world and self.config.sends:
                used = self.images.passes(generated["fidelity"])
                images = {
                    "pool": (used & (generated["round"] <= round)).sum(),
                    "new": (generated["round"] == round).sum(),
                }
            participation.attend(
                self.world, round - 1, rows["client"], rows["status"] != DECLINED, rows["epochs"], **images
            )
            self._note_clients(rows)

    def _note_clients(self, clients: dict[str, np.ndarray]) -> None:
        """Remember each client's last training.

        The loss and the update of a dropped client count as 0; those of a client that did not participate are
        kept.
        """
        who, kept = clients["client"], np.isfinite(clients["update_norm"])
        self.last[who] = clients["round"]
        if self.world and len(who):
            self.world.commit(clients["status"])
        if self.config.privacy.secure_aggregation:
            return  # the server does not know single clients' losses and updates
        trained = np.isin(clients["status"], (AGGREGATED, NOT_FINITE))
        for known, column in ((self.losses, "loss_first_epoch"), (self.norms, "update_norm")):
            known[who] = np.where(kept, clients[column], np.where(trained, 0.0, known[who]))

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint keeps besides the weights: arrays by name.

        The measured speeds among them affect no result; they balance the first round after a restart.
        """
        return (
            {ALGORITHM + name: tensor.numpy() for name, tensor in self.memory.items()}
            | {
                f"{POLICY}{policy}.{name}": value
                for policy, memory in self.remembered.items()
                for name, value in memory.items()
            }
            | {PACE + name: array for name, array in self.pace.state(self.images.generators.rates()).items()}
            | ({TRAINED: self.trained, LOCATIONS: self.locations} if len(self.trained) else {})
            | (self.private.state() if self.private else {})
            | {f"{VERSION}{version}": model.numpy() for version, model in self.versions.items()}
            | {CELL + name: array for name, array in self.cells.items()}
        )

    def restore(self, arrays: dict[str, np.ndarray], tables: dict[str, dict[str, np.ndarray]]) -> None:
        """Restore `state_arrays`, and the tables of the results until then.

        tables: {"clients": {column: array}, "generated": ...}.
        """

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {
                name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)
            }

        self.memory = {name: torch.as_tensor(array) for name, array in under(ALGORITHM).items()}
        for policy, remembered in self.remembered.items():
            remembered.update(under(f"{POLICY}{policy}."))
        self.versions = {int(version): torch.as_tensor(array) for version, array in under(VERSION).items()}
        for name, array in under(CELL).items():
            if len(array) != self.config.cells:
                raise UserError(
                    f"world.cells cannot change in a fork: it is {len(array)} in the checkpoint; set it back"
                )
            self.cells[name][...] = array
        self.pace.restore(under(PACE), self.images.generators.rates())
        if len(self.trained):
            self.trained = arrays.get(TRAINED, self.trained).copy()
            self.locations = arrays.get(LOCATIONS, self.locations).copy()
        self.images.restore(tables["generated"])
        self.replay(tables["clients"], tables["generated"])

    def _judge(self, trials: Trials) -> Callable[[np.ndarray], tuple[float, float]]:
        return trials.judge if self.config.validation.source != "none" else self.state.judge

    def _count_images(self) -> None:
        """Update the number of images in the state, and the samples of clients that are sent them."""
        images = len(self.images)
        self.state = replace(
            self.state,
            images=images,
            samples=self.samples + images if self.config.sends else self.state.samples,
        )

    def _expected_images(self) -> dict[str, int]:
        """Predict the images that clients will be sent in the current round: pool, all of them, and new ones.

        Assumes that all new images pass the filter. If the plan depends on the cohort, the deficit of all
        clients stands for it. Empty if clients are sent no images.
        """
        if not self.config.sends:
            return {}
        counts = self.images.counts(self.state)
        new = (plans.deficit(self.state) if counts is None else counts).sum()
        return {"pool": self.state.images + new, "new": new}

    def _local_epochs(self, cohort: np.ndarray | None = None) -> int:
        """Return the epochs of each client of a cohort, or of a cohort of mean size before it is chosen.

        With matched steps the clients make up for the steps that genfl's server would take on its images,
        rounded up to whole epochs.
        """
        training, augmented = self.config.training, self.config.augmented
        if not self.config.matches_steps:
            return training.epochs
        state = replace(self.state, cohort=UNSET)
        for round in range(self.state.round + 1):
            state = replace(state, round=round)
            if (counts := self.images.counts(state)) is None:
                raise UserError("method=matched needs a generation.plan that does not depend on the cohort")
            state = replace(state, generated=state.generated + counts)
        steps = augmented.epochs * local_batches(state.generated.sum(), augmented.batch_size)
        samples, share = (
            (self.samples, self.config.cohort / self.config.clients)
            if cohort is None
            else (self.samples[cohort], 1)
        )
        return training.epochs + int(
            np.ceil(steps / (share * local_batches(samples, training.batch_size).sum()))
        )


def planning_server(
    config: Config,
    arrays: dict[str, np.ndarray],
    ranks: int = 1,
    planned: AbstractSet[Batch] = frozenset(),
    able: np.ndarray | None = None,
) -> Server:
    """Make the `Server` of a run that has not begun, to plan its cohorts and images.

    arrays: of `load_and_divide`; ranks: of the planned run; planned, able: as of `ServerImages`.
    """
    about = datasets.describe(config.data)
    return Server(
        config,
        about,
        arrays,
        torch.device("cpu"),
        algorithms.find(config),
        find_policies(config),
        ranks,
        planned,
        able,
    )


def _all_at_once(wanted: np.ndarray) -> Callable[[ServerState], np.ndarray]:
    """Make a plan that requests all images in the first round. wanted: int (classes,), of each class."""

    def plan(state: ServerState) -> np.ndarray:
        return np.maximum(wanted - state.generated, 0)

    return plan
