"""What the server knows and decides (rank 0): who takes part, with which weights, and what it remembers from round to round."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

from genfl_mpi.config import functions
from genfl_mpi.data import datasets
from genfl_mpi.edge.attendance import AGGREGATED, DECLINED, NOT_FINITE, STATUS
from genfl_mpi.federation import algorithms, participation
from genfl_mpi.federation.algorithms.interface import Cohort
from genfl_mpi.federation.client_images import ClientImages
from genfl_mpi.federation.messages import CLIENT_FIELDS, NO_RANK
from genfl_mpi.federation.policies import ServerState, needed
from genfl_mpi.federation.policy_lookup import POLICIES, find_policies
from genfl_mpi.federation.server_images import ServerImages
from genfl_mpi.federation.surroundings import Surroundings
from genfl_mpi.generation import plans
from genfl_mpi.learning.batches import local_batches
from genfl_mpi.mpi import failing
from genfl_mpi.mpi.schedule import Pace, assign
from genfl_mpi.util.errors import UserError

# Prefixes of names in the checkpoint: what policies and the algorithm remember, and measured speeds.
POLICY, ALGORITHM, PACE = "policy.", "algorithm.", "pace."
TRAINED = "trained"  # in the checkpoint, the round of each client's last training


class Server:
    """config: `Config`; about: the data set's `Description`; data: the arrays of `load_and_divide`, of which the server takes the
    clients' sizes, the labels that they share, and the public pool; device: on which it reads images; algorithm: the configured
    `Algorithm`; policies: of `find_policies`; ranks: of the communicator; ready: as of `ServerImages`.

    state: the `ServerState` of the round. images: its `ServerImages`. memory: {name: float64 tensor}, what the algorithm keeps.
    cohort: its `Cohort`, with the rho of the members that are counted on. status: STATUS (cohort,), what becomes of them.
    """

    def __init__(self, config, about, data, device, algorithm, policies, ranks, ready=None):
        self.config, self.algorithm = config, algorithm
        self.select_policy, self.rho_policy, self.kappa_policy = (
            policies[name] for name in ("select", "rho", "kappa")
        )
        self.samples = (
            np.diff(data["pointers"]) + config.data.shared
        )  # of each client, without generated images
        self.world = (
            Surroundings(config, about, self.samples, data["shared_labels"]) if config.world else None
        )
        self.image_joules = self.world.image_joules if self.world else None
        plan = policies["plan"]
        if config.fills:
            wanted, most, share = ClientImages(config, about, data, self.image_joules).demand()
            plan = _all_at_once(most)
            if self.world:
                self.world.fill(wanted, share)
        self.images = ServerImages(config, about, data, device, plan, ready)
        self.state = ServerState(
            0,
            config,
            self.samples + wanted if config.fills else self.samples,
            data["shared_labels"],
            generated=self.images.made_of_label,
            last=np.zeros(config.clients, dtype=np.int64),
            losses=np.full(config.clients, np.nan),
            norms=np.full(config.clients, np.nan),
        )
        self.pace, self.seconds_of_others = Pace(ranks), 0.0
        # What policies remember, by the policy's name: after the last whole round, and in the round at hand, which may not count.
        self.remembered = {name: {} for name in POLICIES if "memory" in needed(policies[name])}
        self.memories = {}
        self.memory = {}
        keeps = algorithm.declared("client", 1, config)
        self.trained = np.zeros(
            config.clients if keeps else 0, dtype=np.int64
        )  # round of each client's last training
        self.willing = np.ones(0, dtype=bool)  # which of the cohort does not decline
        self.status = np.empty(0, STATUS)
        self.cohort = Cohort(*np.zeros((3, 0), dtype=np.int64), np.zeros(0))

    def select(self, round, message):
        """Choose the cohort of a round, its rho and its ranks: written into the `Broadcast` message, with what the algorithm sends. Clients
        who are sent images are only chosen: who of them takes part depends on these."""
        plan = message.plan
        for name, values in self.algorithm.broadcast(self.memory, self.config).items():
            message.arrays[name][...] = values
        self.memories = deepcopy(self.remembered)
        self.state = replace(self.state, round=round, cohort=None, forecast=None, available=None)
        self._count_images()
        if self.world:
            forecast = self.world.forecast(round, self._local_epochs(), **self._expected_images())
            self.state = replace(self.state, forecast=forecast, available=self.world.available(forecast))
        if not self.config.trains_clients:
            return
        with failing.named(f"the selection policy {functions.of(self.select_policy)}"):
            cohort, self.willing = participation.choose(
                self.select_policy, replace(self.state, memory=self.memories.get("select"))
            )
        self.state = replace(self.state, cohort=cohort)
        plan["client"], plan["rho"], plan["rank"], plan["epochs"] = (
            cohort,
            0.0,
            NO_RANK,
            self._local_epochs(cohort),
        )
        plan["since"] = self.trained[cohort] if len(self.trained) else 0
        if not self.config.sends:
            self._admit(plan)

    def send(self, plan):
        """Send all clients the round's images, which count as their samples: write into `plan` what `select` left open."""
        self._count_images()
        self._admit(plan, pool=self.state.images, new=self.images.new)

    def _admit(self, plan, **images):
        """Decide who of the cohort takes part, with which weight, and on which rank it is trained. images: that they are sent."""
        ids, epochs = self.state.cohort, plan["epochs"].copy()
        self.status = participation.attend(self.world, self.state.round, ids, self.willing, epochs, **images)
        counted = self.status == AGGREGATED
        self.cohort = Cohort(ids, self.state.samples[ids], epochs, np.zeros(len(ids)))
        if counted.any() and "models" not in needed(self.rho_policy):
            self.weigh(plan, counted)
        rates, costs = self.pace.rates(), self.cohort.samples[counted] * epochs[counted] + self.pace.overhead
        busy = self.images.busy_seconds(self.state, rates[0])
        plan["rank"][counted] = ranks = assign(costs, rates, busy, self.config.training.clients_per_batch)
        self.seconds_of_others = self.pace.seconds_of_others(costs, ranks)

    def weigh(self, plan, counted, **known):
        """Ask the rho policy, and write the coefficients of the cohort's models into `plan`. counted: bool (cohort,), the members that
        it is asked about: the others have none. known: what the policy knows besides, after training."""
        state = replace(
            self.state, cohort=self.state.cohort[counted], memory=self.memories.get("rho"), **known
        )
        with failing.named(f"the rho policy {functions.of(self.rho_policy)}"):
            rho = np.asarray(self.rho_policy(state), dtype=np.float64)
        if rho.shape != state.cohort.shape or not (rho >= 0).all() or abs(rho.sum() - 1) > 1e-9:
            raise UserError(
                f"the rho policy {functions.of(self.rho_policy)} must return a weight >= 0 for each client of the cohort, "
                f"with sum 1, not {rho}"
            )
        shares = np.zeros(len(counted))
        shares[counted] = rho
        self.cohort = self.cohort._replace(rho=shares)
        plan["rho"] = self.algorithm.coefficients(self.cohort, self.config)

    def weigh_models(self, plan, rows, omega, parameters, trials):
        """Ask a rho policy that looks at the trained models. rows: float64 (cohort, CLIENT_FIELDS), of all ranks; omega: float32
        (size,), the weights before the round; trials: `Trials`. It is not asked about clients that were dropped, nor in a round that
        is incomplete."""
        reports = dict(zip(CLIENT_FIELDS, rows.T))
        counted = np.isfinite(reports["update_norm"])
        if not (reports["samples"].all() and counted.any()):
            return

        def average(coefficients):
            """The exact sum of the models with float64 coefficients (K,) in [0, 1]: float32 (size,)."""
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

    def kappa2(self, omega, omega_fl, omega_a, parameters, trials):
        """The augmented model's weight in Eq. (1), and the `ServerState` of which the kappa policy was asked for it, or None if one of the
        two models is missing: then the other has the whole weight."""
        if omega_a is None or omega_fl is None:
            return (0.0 if omega_a is None else 1.0), None
        forecast = self.state.forecast
        if forecast:
            joules = self.world.augmented_joules(self.images.new, len(self.images))
            forecast = replace(forecast, augmented_joules=joules)
        state = replace(
            self.state,
            cohort=self.state.cohort[self.status == AGGREGATED],
            weights=omega.numpy(),
            fl_weights=omega_fl.float().numpy(),
            augmented_weights=omega_a.numpy(),
            parameters=parameters,
            judge=self._judge(trials),
            images=len(self.images),
            forecast=forecast,
            memory=self.memories.get("kappa"),
        )
        name = f"the kappa policy {functions.of(self.kappa_policy)}"
        with failing.named(name):
            kappa2 = np.asarray(self.kappa_policy(state))
        if kappa2.ndim or kappa2.dtype.kind not in "iuf" or not 0 <= kappa2 <= 1:
            raise UserError(f"{name} returned {kappa2}; kappa2 must lie in [0, 1], as a number")
        return float(kappa2), state

    def note(self, clients):
        """Remember a whole round: what its policies remember, and how its clients trained, columns of /clients."""
        self.remembered = self.memories
        if len(self.trained):
            self.trained[clients["client"][np.isfinite(clients["update_norm"])]] = self.state.round + 1
        self._note_clients(clients)

    def note_earlier(self, clients, generated):
        """Remember how the clients trained in all rounds before a continued run goes on, and the images that they got in them: columns
        of /clients and /generated."""
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

    def _note_clients(self, clients):
        """The loss and the update of a client that was dropped count as 0. Those of one that did not take part stay what they were."""
        who, kept = clients["client"], np.isfinite(clients["update_norm"])
        trained = np.isin(clients["status"], (AGGREGATED, NOT_FINITE))
        self.state.last[who] = clients["round"]
        for known, column in ((self.state.losses, "loss_first_epoch"), (self.state.norms, "update_norm")):
            known[who] = np.where(kept, clients[column], np.where(trained, 0.0, known[who]))
        if self.world and len(who):
            self.world.note(clients["status"])

    def state_arrays(self):
        """What a checkpoint keeps beside the weights: NumPy arrays by name. No result depends on the measured speeds among them: with
        them the first round after a restart is balanced."""
        return (
            {ALGORITHM + name: tensor.numpy() for name, tensor in self.memory.items()}
            | {
                f"{POLICY}{policy}.{name}": value
                for policy, memory in self.remembered.items()
                for name, value in memory.items()
            }
            | {
                PACE + name: array
                for name, array in self.pace.memory((self.images.speed, self.images.loading)).items()
            }
            | ({TRAINED: self.trained} if len(self.trained) else {})
        )

    def restore(self, arrays, tables):
        """Take back `state_arrays`, and the tables of the results until then, {"clients": {column: array}, "generated": ...}."""

        def under(prefix):
            return {
                name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)
            }

        self.memory = {name: torch.as_tensor(array) for name, array in under(ALGORITHM).items()}
        for policy, remembered in self.remembered.items():
            remembered.update(under(f"{POLICY}{policy}."))
        self.pace.recall(under(PACE), (self.images.speed, self.images.loading))
        if len(self.trained):
            self.trained = arrays[TRAINED].copy()
        self.images.add(*(tables["generated"][name] for name in ("label", "image", "fidelity")))
        self.note_earlier(tables["clients"], tables["generated"])

    def _judge(self, trials):
        return trials.judge if self.config.validation.source != "none" else None

    def _count_images(self):
        """Bring up to date in the state how many images there are, and what clients train on who are sent them."""
        images = len(self.images)
        self.state = replace(
            self.state,
            images=images,
            samples=self.samples + images if self.config.sends else self.state.samples,
        )

    def _expected_images(self):
        """If clients are sent the images: how many there will be in the round that begins, and how many of them are new, if all
        pass; where the plan waits for the cohort, as many as the deficit of all has."""
        if not self.config.sends:
            return {}
        counts = self.images.counts(self.state)
        new = (plans.deficit(self.state) if counts is None else counts).sum()
        return {"pool": self.state.images + new, "new": new}

    def _local_epochs(self, cohort=None):
        """Passes of each client over its data, of a cohort or, before it is chosen, of one of mean size. With matched steps the
        clients make up for the steps that genfl's server would make on its images: in whole epochs, so rather more steps than fewer."""
        training, augmented = self.config.training, self.config.augmented
        if not self.config.matches_steps:
            return training.epochs
        state = replace(self.state, cohort=None)
        for round in range(self.state.round + 1):
            state = replace(state, round=round)
            if (counts := self.images.counts(state)) is None:
                raise UserError(
                    "method=matched needs a generation.plan that can tell before the cohort is chosen"
                )
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


def planning_server(config, arrays, ranks=1, ready=None):
    """The `Server` of a run that has not begun: it chooses cohorts and plans images, and computes nothing. arrays: of `load_and_divide`;
    ranks: that the run is to have; ready: as of `ServerImages`."""
    about = datasets.describe(config.data)
    return Server(config, about, arrays, None, algorithms.find(config), find_policies(config), ranks, ready)


def _all_at_once(most):
    """A plan that asks for all images in the first round. most: int (classes,), of each class."""

    def plan(state):
        return np.maximum(most - state.generated, 0)

    return plan
