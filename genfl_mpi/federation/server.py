"""What rank 0 does as the server, besides training clients: select, train omega_a, aggregate; it has the generated images."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch

from genfl_mpi.config import functions
from genfl_mpi.edge.attendance import AGGREGATED, DECLINED, NOT_FINITE, STATUS
from genfl_mpi.federation import participation
from genfl_mpi.federation.client_images import Placement
from genfl_mpi.federation.configured import POLICIES, find_policies
from genfl_mpi.federation.messages import NOBODY
from genfl_mpi.federation.policies import ServerState, needed
from genfl_mpi.federation.server_images import Generated
from genfl_mpi.federation.surroundings import Surroundings
from genfl_mpi.generation import plans
from genfl_mpi.learning.aggregation import normalised, server_step, unnormalised
from genfl_mpi.learning.batches import local_batches
from genfl_mpi.learning.training import at_round, normalise, train
from genfl_mpi.learning.weights import bound
from genfl_mpi.mpi import failing
from genfl_mpi.mpi.schedule import assign
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

POLICY = "policy."  # before the names of what policies remember, in the checkpoint


class Server:
    """config: `Config`; about: the data set's `Description`; data: the arrays of `load_and_divide`, of which the server
    takes the clients' sizes, what they tell of their labels, and the public pool.

    policies: all of `find_policies`; by default the configured ones.
    """

    def __init__(self, config, about, data, device, policies=None):
        self.config, self.about, self.data, self.device = config, about, data, device
        policies = policies or find_policies(config)
        self.select, self.rho, self.kappa = (policies[name] for name in ("select", "rho", "kappa"))
        self.generated = Generated(config, about, data, device, policies["plan"])
        self.samples = np.diff(data["pointers"]) + config.data.shared  # of each client, without generated images
        self.state = ServerState(
            0, config, self.samples, data["shared_labels"],
            generated=self.generated.of_label, last=np.zeros(config.clients, dtype=np.int64),
            losses=np.full(config.clients, np.nan), norms=np.full(config.clients, np.nan))
        # What policies remember, by the policy's name: after the last whole round, and in the round at hand, which may not count.
        self.remembered = {name: {} for name in POLICIES if "memory" in needed(policies[name])}
        self.memories = {}
        self.moments = {}  # of the server's optimizer, by name: float64 (parameters,)
        self.trained = np.zeros(config.clients if config.algorithm.name == "scaffold" else 0, dtype=np.int64)  # round of each client's last training
        self.shares = np.zeros(0)  # the rho policy's answer for the cohort
        self.willing = np.ones(0, dtype=bool)  # who of the cohort does not decline
        self.status = np.empty(0, STATUS)  # what becomes of its clients
        self.seconds_of_others = 0.0  # predicted: how long the slowest other rank trains in this round
        self.asked = None  # the `ServerState` of which the kappa policy was asked, if it was
        self.around = Surroundings(config, about, self.samples, data["shared_labels"]) if config.world else None
        if config.fills:
            wanted, most, share = Placement(config, about, data, self.image_joules).demand()
            self.state = replace(self.state, samples=self.samples + wanted)
            self.generated.plan = lambda state: np.maximum(most - state.generated, 0)  # all in the first round
            if self.around:
                self.around.fill(wanted, share)

    @property
    def image_joules(self):
        """What an image takes the client that makes it, in J; None without a world."""
        return self.around and self.around.image_joules

    def begin(self, round, plan, pace):
        """Choose the cohort of a round, its rho and its ranks: written into `plan`, the records of a `Down` message.
        pace: a `Pace`, of the rounds before. Clients who are sent images are only chosen: who is heard depends on these."""
        self.memories = deepcopy(self.remembered)
        self.state = replace(self.state, round=round, cohort=None, forecast=None, available=None)
        self._count_images()
        if self.around:
            forecast = self.around.forecast(round, self._local_epochs(), **self._expected())
            self.state = replace(self.state, forecast=forecast, available=self.around.available(forecast))
        if not self.config.trains_clients:
            return
        with failing.named(f"the selection policy {functions.of(self.select)}"):
            cohort, self.willing = participation.choose(self.select, replace(self.state, memory=self.memories.get("select")))
        self.state, self.epochs = replace(self.state, cohort=cohort), self._local_epochs(cohort)
        plan["client"], plan["rho"], plan["epochs"], plan["rank"] = cohort, 0.0, self.epochs, NOBODY
        plan["since"] = self.trained[cohort] if len(self.trained) else 0
        if not self.config.sends:
            self._admit(plan, pace)

    def send(self, plan, pace):
        """All clients are sent the round's images, which count as their samples: write into `plan` what `begin` left open."""
        self._count_images()
        self._admit(plan, pace, pool=self.state.images, new=self.generated.fresh)

    def _admit(self, plan, pace, **images):
        """Who of the cohort will be heard, with which weight, and on which rank it is trained. images: that they are sent."""
        cohort = self.state.cohort
        self.status = participation.attend(self.around, self.state.round, cohort, self.willing, plan["epochs"], **images)
        heard = self.status == AGGREGATED
        if heard.any() and "models" not in needed(self.rho):
            self.weigh(plan, heard)
        rates, costs = pace.rates(), self.state.samples[cohort[heard]] * self.epochs + pace.overhead
        busy = self.generated.busy_seconds(self.state, rates[0])
        plan["rank"][heard] = ranks = assign(costs, rates, busy, self.config.training.together)
        self.seconds_of_others = pace.seconds_of_others(costs, ranks)

    def _expected(self):
        """With method=sent, how many images there will be in the round that begins, and how many of them are new, if all pass;
        where its plan waits for the cohort, as many as the deficit of all has."""
        if not self.config.sends:
            return {}
        counts = self.generated.counts(self.state)
        new = (plans.deficit(self.state) if counts is None else counts).sum()
        return {"pool": self.state.images + new, "new": new}

    def _count_images(self):
        """Bring up to date in the state how many images there are, and what clients train on who are sent them."""
        images = len(self.generated)
        self.state = replace(self.state, images=images, samples=self.samples + images if self.config.sends else self.state.samples)

    def weigh(self, plan, counted, **known):
        """Write the weights of the cohort's models into `plan`. counted: bool (cohort,), of whom the rho policy is asked: the
        others have none. known: what it is told besides, after training."""
        state = replace(self.state, cohort=self.state.cohort[counted], memory=self.memories.get("rho"), **known)
        with failing.named(f"the rho policy {functions.of(self.rho)}"):
            rho = np.asarray(self.rho(state), dtype=np.float64)
        if rho.shape != state.cohort.shape or not (rho >= 0).all() or abs(rho.sum() - 1) > 1e-9:
            raise UserError(f"the rho policy {functions.of(self.rho)} must return a weight >= 0 for each client of the cohort, with sum 1, not {rho}")
        self.shares = np.zeros(len(counted))
        self.shares[counted] = rho
        plan["rho"] = self._weights(self.shares)

    def note(self, clients):
        """Remember a whole round: what its policies remember, and how its clients trained, columns of /clients."""
        self.remembered = self.memories
        self._note_clients(clients)

    def note_earlier(self, clients, generated):
        """Remember how the clients trained in all rounds before a continued run goes on, and what they got in them: columns of
        /clients and /generated."""
        for round in np.unique(clients["round"]):
            rows = {name: column[clients["round"] == round] for name, column in clients.items()}
            images = {}
            if self.around and self.config.sends:
                used = self.generated.passes(generated["fidelity"])
                images = {"pool": (used & (generated["round"] <= round)).sum(), "new": (generated["round"] == round).sum()}
            participation.attend(self.around, round - 1, rows["client"], rows["status"] != DECLINED, rows["epochs"], **images)
            self._note_clients(rows)

    def _note_clients(self, clients):
        """A client that was dropped has nothing to give: its loss and its change count as 0. Of one that was not heard they stay
        what they were."""
        who, kept = clients["client"], np.isfinite(clients["update_norm"])
        heard = np.isin(clients["status"], (AGGREGATED, NOT_FINITE))
        self.state.last[who] = clients["round"]
        for known, column in ((self.state.losses, "loss_first_epoch"), (self.state.norms, "update_norm")):
            known[who] = np.where(kept, clients[column], np.where(heard, 0.0, known[who]))
        if self.around and len(who):
            self.around.note(clients["status"])

    def _local_epochs(self, cohort=None):
        """Passes of each client over its data, of a cohort or, before it is chosen, of one of mean size. With method=matched
        the clients make up for the steps that genfl's server would make on its images: in whole epochs, so rather more steps
        than fewer."""
        training, augmented = self.config.training, self.config.augmented
        if self.config.method != "matched":
            return training.epochs
        state = replace(self.state, cohort=None)
        for round in range(self.state.round + 1):
            state = replace(state, round=round)
            if (counts := self.generated.counts(state)) is None:
                raise UserError("method=matched needs a generation.plan that can tell before the cohort is chosen")
            state = replace(state, generated=state.generated + counts)
        steps = augmented.epochs * local_batches(state.generated.sum(), augmented.batch_size)
        samples, share = (self.samples, self.config.cohort / self.config.clients) if cohort is None else (self.samples[cohort], 1)
        return training.epochs + int(np.ceil(steps / (share * local_batches(samples, training.batch_size).sum())))

    def _weights(self, rho):
        """What the clients' models are weighted by in the sum, float64 (cohort,): rho, or what FedNova makes of it."""
        fednova = self.config.algorithm.name == "fednova"
        training = self.config.training.model_copy(update={"epochs": self.epochs})
        return normalised(rho, self.state.samples[self.state.cohort], training) if fednova else rho

    def train_augmented(self, model, start, leaving):
        """omega_a: the trainer of the clients, on all images generated so far, from the global weights `start`. Returns it
        with the trainer's `Report`, or (None, None) while there is none, or once the function `leaving` is true."""
        generated = self.generated
        if leaving():
            generated.interrupted = True
        if generated.interrupted or not len(generated):
            return None, None
        images = normalise(torch.from_numpy(np.concatenate(generated.images)), self.about.mean, self.about.std, self.device)
        labels = torch.from_numpy(np.concatenate(generated.labels)).to(self.device)
        rng = streams.generator(self.config.seed, "augmented", self.state.round)
        report = train(model, start, images, labels, at_round(self.config.augmented, self.state.round), rng)
        return model.weights.to("cpu", copy=True), report

    def memory(self):
        """What the algorithm and the policies remember from round to round: NumPy arrays by name."""
        of_policies = {f"{POLICY}{policy}.{name}": value
                       for policy, memory in self.remembered.items() for name, value in memory.items()}
        return ({name: value.numpy() for name, value in self.moments.items()}
                | ({"trained": self.trained} if len(self.trained) else {}) | of_policies)

    def remember(self, memory, down):
        """Take `memory` back."""
        self.moments = {name: torch.as_tensor(array) for name, array in memory.items() if not name.startswith(POLICY)}
        for policy, remembered in self.remembered.items():
            prefix = f"{POLICY}{policy}."
            remembered.update({name.removeprefix(prefix): array for name, array in memory.items() if name.startswith(prefix)})
        if len(self.trained):
            self.trained = self.moments.pop("trained").numpy()
            down.variate[:] = self.moments["variate"].numpy()

    def control(self, change, down, kept):
        """SCAFFOLD's variate of the server: c <- c + 1/N sum_n (new c_n - c_n). change: float64 (parameters,), that sum; kept:
        bool (cohort,), whose c_n is new."""
        self.moments["variate"] = self.moments.get("variate", 0) + change
        down.variate[:] = self.moments["variate"].numpy()
        self.trained[down.plan["client"][kept]] = self.state.round + 1

    def average(self, total, omega_t, parameters, plan, up):
        """Average the clients' models: float64 (size,), their weighted sum, and what FedNova leaves to omega^t.

        total: float64 (size,), the exact sum; parameters: how many of the weights are parameters; plan: of the `Down` message; up:
        the `Up` message, as reduced. Where clients were dropped as not finite, their status is noted and the others share their
        rho: the sum is scaled, and plan's rho replaced. Returns None if no client's update can be aggregated, because none was
        trained or none of those with a weight is finite. Raises ArithmeticError if the sum may have overflowed.
        """
        heard = plan["rank"] != NOBODY
        if not heard.any():
            return None
        bound(plan["rho"], up.of_clients("largest_weight"))
        kept = np.isfinite(up.of_clients("update_norm"))
        if not kept[heard].all():
            self.status = np.where(heard & ~kept, NOT_FINITE, self.status).astype(STATUS)
            if not plan["rho"][kept].any():
                plan["rho"] = 0.0
                return None
            shares = np.where(kept, self.shares, 0)
            weights = self._weights(shares / shares.sum())
            total = total * (weights.sum() / plan["rho"][kept].sum())  # both are in the same proportions
            plan["rho"] = weights
        return unnormalised(total, omega_t, parameters, plan["rho"].sum()) if self.config.algorithm.name == "fednova" else total

    def aggregate(self, omega_t, omega_fl, omega_a, parameters, judge):
        """Eq. (1): kappa1 sum rho_n omega_n + kappa2 omega_a, in float64. Returns it with kappa2.

        omega_t: float32 (size,), the weights before the round; omega_fl: float64 (size,), the clients' weighted sum, or
        None if no client trained; omega_a: float32 (size,), or None if nothing was generated. What is missing has no weight.
        parameters: how many of the weights are parameters; judge: as in `ServerState`. The configured algorithm makes its step
        with omega_fl first.
        """
        if omega_a is not None and not omega_a.sum().isfinite():
            raise FloatingPointError("the augmented model's weights are not finite; a smaller augmented.lr may help")
        if omega_fl is not None:
            omega_fl = server_step(self.moments, omega_t, omega_fl, parameters, self.config.algorithm)
        kappa2, self.asked = 0.0 if omega_a is None else 1.0, None
        omega = next((weights for weights in (omega_a, omega_fl) if weights is not None), omega_t)
        if omega_a is not None and omega_fl is not None:
            self.asked = self._before_kappa(omega_t, omega_fl, omega_a, parameters, judge)
            with failing.named(f"the kappa policy {functions.of(self.kappa)}"):
                kappa2 = np.asarray(self.kappa(self.asked))
            if kappa2.ndim or kappa2.dtype.kind not in "iuf" or not 0 <= kappa2 <= 1:
                raise UserError(f"the kappa policy {functions.of(self.kappa)} returned {kappa2}; kappa2 must lie in [0, 1], as a number")
            kappa2 = float(kappa2)
            omega = (1 - kappa2) * omega_fl + kappa2 * omega_a.double()
        if not omega.sum().isfinite():  # as of the whole vector, and ten times as quick
            raise FloatingPointError("the new global weights are not finite; a smaller learning rate may help")
        return omega, kappa2

    def _before_kappa(self, omega_t, omega_fl, omega_a, parameters, judge):
        """The `ServerState` of which a kappa policy is asked."""
        images, forecast = len(self.generated), self.state.forecast
        if forecast:
            forecast = replace(forecast, augmented_joules=self.around.augmented_joules(self.generated.fresh, images))
        return replace(
            self.state, cohort=self.state.cohort[self.status == AGGREGATED], weights=omega_t.numpy(),
            fl_weights=omega_fl.float().numpy(), augmented_weights=omega_a.numpy(),
            parameters=parameters, judge=judge, images=images, forecast=forecast, memory=self.memories.get("kappa"))
