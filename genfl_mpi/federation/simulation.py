"""The round of generative federated learning (GenFL), with the paper's steps in the paper's order."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from genfl_mpi.config.loading import single
from genfl_mpi.config.settings import Config, filled_in
from genfl_mpi.data import datasets
from genfl_mpi.data.clients import divide, load_once_a_node
from genfl_mpi.federation import laboratory, records
from genfl_mpi.federation.client_images import Placement
from genfl_mpi.federation.configured import find_policies
from genfl_mpi.federation.council import Council
from genfl_mpi.federation.messages import NOBODY, Down, Up
from genfl_mpi.federation.probes import Probes
from genfl_mpi.federation.records import Record
from genfl_mpi.federation.resident import Resident
from genfl_mpi.federation.server import Server
from genfl_mpi.federation.worker import Host
from genfl_mpi.learning import models
from genfl_mpi.learning.batches import smallest_batch
from genfl_mpi.learning.evaluation import accuracy_over_clients, chunks, evaluate, summarise
from genfl_mpi.learning.weights import ExactSum, FlatModel
from genfl_mpi.mpi import collectives, devices, failing, staging
from genfl_mpi.mpi.schedule import Pace
from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.timing import Clock

PACE = "pace."  # before the names of the measured speeds, in the checkpoint


class Simulation:
    """One run; iterating over it computes its rounds. Every rank of `comm` must construct and iterate together.

    source: a YAML file, a dict, a `Config`, or None for the embedded default; overrides: "key=value" strings, as on the
    command line. comm: an mpi4py communicator, by default all ranks. folder: where clients keep what they remember, if the
    algorithm wants that, by default `variates` in config.output. run: the id of the run, which those files
    carry, by default a new one. dataset: the arrays of `load_once_a_node`, where several simulations share
    them. note: a function that is told (phase, client, round) of what this rank begins. leaving: a function
    that returns an exit status when the ranks were asked to leave, and else 0: the iteration then ends early,
    and `left` has the status. policies: functions of a `ServerState` named select, rho, kappa or plan, that
    take the place of the configured ones. Raises UserError on every rank if the configuration cannot be run.
    """

    def __init__(self, source=None, overrides=(), *, comm=None, folder=None, run=None, dataset=None,
                 note=lambda *_, **__: None, leaving=lambda: 0, **policies):
        if unknown := set(policies) - {"select", "rho", "kappa", "plan"}:
            raise UserError(f"there is no policy {unknown.pop()!r}; policies are select, rho, kappa and plan; "
                            "the configuration's `selection` is given as select")
        if isinstance(source, Config) and overrides:
            raise UserError("overrides go with a file, a dict or the default; change a Config itself with model_copy")
        self.comm, self.note, self.leaving, self.left = comm or collectives.world(), note, leaving, 0
        self.config = config = resolve(source if isinstance(source, Config) else single(source, overrides), self.comm)
        self.is_server = self.comm.rank == 0
        self.about = datasets.describe(config.data)
        self.device = devices.use(self.comm, config.runtime.threads, config.runtime.device)
        self._windows = []
        if dataset is None:
            dataset, window = load_once_a_node(self.comm, config.data)
            self._windows.append(window)
        divided, window = collectives.node_shared(self.comm, lambda: divide(config, dataset))
        self._windows.append(window)
        self.data = {**dataset, **divided}
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.runtime.tf32
        module = collectives.together(self.comm, lambda: models.build(
            config.model, len(self.about.classes), self.about.shape, streams.integer(config.seed, "init")))
        self.model = FlatModel(module, self.device)
        self.outputs = self.model.outputs(len(self.about.classes))
        collectives.together(self.comm, self._check)
        cohort = config.cohort if config.trains_clients else 0
        variate = self.model.parameters if config.algorithm.name == "scaffold" else 0
        zeros = partial(staging.zeros, device=self.device)
        self.down = Down(len(self.model.weights), cohort, variate, zeros)
        self.up = Up(len(self.model.weights), cohort, self.comm.size, variate, len(self.about.classes) if config.audit else 0, zeros)
        self.sum = ExactSum(self.up.units)
        self.weights = torch.from_numpy(self.down.weights)  # omega^t
        self.weights.copy_(self.model.weights)
        self.there = Resident(self.comm, self.device, self.weights, self.up, self.sum, self.data["train_images"])
        self.host = Host(self, folder or Path(config.output) / "variates", run)
        self.round = 0
        self.pace = Pace(self.comm.size)
        policies = collectives.together(self.comm, lambda: find_policies(config, policies))
        self.server = collectives.together(
            self.comm, lambda: self.is_server and Server(config, self.about, self.data, self.device, policies))
        image_joules = collectives.from_rank0(self.comm, lambda: self.server.image_joules) if config.fills else None
        self.placement = Placement(config, self.about, self.data, image_joules)
        self.council, self.probes = Council(self, policies["rho"]), Probes(self)

    def _check(self):
        """Raise UserError for settings that do not go with the model or the data."""
        config, side = self.config, min(self.about.shape[1:])
        if config.audit and self.outputs is None:
            raise UserError("audit looks at the biases of the model's last layer, and "
                            f"model.name={config.model.name} does not end in them")
        samples = np.diff(self.data["pointers"]) + config.data.shared
        without_images = config.trains_clients and not (config.sends or config.fills)
        if without_images and 1 in smallest_batch(samples, config.training.batch_size):
            models.check(config.model, len(self.about.classes), self.about.shape, samples=1)
        for section in ("training", "augmented"):
            if (crop := getattr(config, section).crop) >= side:
                raise UserError(f"{section}.crop={crop} must be less than the images' side, {side}")

    def restore(self, round, weights, state, tables):
        """Continue after `round` finished rounds. On rank 0 alone: the weights, what `memory` returned then,
        and the tables of the results until then, {"clients": {column: array}, "generated": ...}."""
        self.round = round
        if self.is_server:
            self.weights.copy_(torch.as_tensor(weights))
            speeds = {name.removeprefix(PACE): state[name] for name in state if name.startswith(PACE)}
            self.pace.recall(speeds, (self.server.generated.speed, self.server.generated.loading))
            remembered = {name: array for name, array in state.items() if not name.startswith(PACE)}
            self.server.remember(remembered, self.down)
            self.server.generated.add(*(tables["generated"][name] for name in ("label", "image", "fidelity")))
            self.server.note_earlier(tables["clients"], tables["generated"])

    def memory(self):
        """Return the state that a checkpoint keeps beside the weights, on rank 0: NumPy arrays by name.

        It has the measured speeds, on which no result depends, to balance the first round after a restart.
        """
        speeds = self.pace.memory((self.server.generated.speed, self.server.generated.loading))
        return self.server.memory() | {PACE + name: array for name, array in speeds.items()}

    def close(self):
        """Give the node's shared memory back; collective. For scripts that make many simulations."""
        self.data = None
        for window in self._windows:
            window.Free()

    def __iter__(self):
        if self.round < self.config.rounds:
            self._announce()
            clock = Clock(self.note)
        while self.round < self.config.rounds and not self.left:
            self.note("begin", round=self.round + 1)
            with failing.named(f"round {self.round + 1}"):
                record = self._advance(clock)
            clock = Clock(self.note)  # what happens to the record, writing it say, is time of the next round
            if record:
                yield record

    def _advance(self, clock):
        """Round t: from omega^t, which every rank has, to omega^(t+1), which every rank has at the end. Returns its `Record`,
        or None if the ranks were asked to leave before all of it was done: then nothing of it counts."""
        generated, omega_a, omega_fl, augmented, round, begun = [], None, None, None, self.round, 0.0
        self.up.clear()
        self.there.clear()

        # Data augmentation (III-B): the server generates, and trains omega_a on what it generated; or the clients get the images ...
        if self.is_server and (self.config.generates or self.config.augments):
            with clock("generate"):
                generated = self.server.generated.make(self.server.state, self.leaving)
        if self.is_server and self.config.augments:
            with clock("augment"):
                omega_a, augmented = self.server.train_augmented(self.model, self.there.start, self.leaving)
        if self.config.sends or self.config.fills:
            with clock("send"):
                if self.is_server and self.config.sends:
                    self.server.send(self.down.plan, self.pace)
                self.placement.spread(self.comm, self.server and self.server.generated, self.down.plan)
            begun = clock.now()  # when the other ranks begin to train
        self.probes.begin(round)

        # ... while the clients train (III-C): each rank adds up rho_n omega_n of its own. Who will not be heard need not train.
        if self.is_server:
            self.up.excuse(self.down.plan["rank"] == NOBODY, self.server.state.samples[self.down.plan["client"]])
        with clock("train"):
            self.host.train(clock)
        ahead = partial(self._ahead, begun, clock) if self.is_server and self.config.generates else None
        self.note("wait")
        waiting = collectives.arrive(self.comm, ahead, self.leaving)
        self.up.ranks[self.comm.rank] = clock.seconds["train"], waiting.idle_seconds, self.leaving()

        # Aggregation (III-D), Eq. (1), once policies that try models have been heard.
        self.council.weigh(self.up, self.there.partial)
        with clock("reduce"):
            self.there.reduce(self.comm, self.up)
        told = {}
        if self.is_server and self._is_whole():
            if self.config.trains_clients:
                omega_fl = self.server.average(self.sum.value(), self.weights, self.model.parameters, self.down.plan, self.up)
            omega, kappa2 = self.server.aggregate(self.weights, omega_fl, omega_a, self.model.parameters, self.council.judge)
            told = self._collect(clock, kappa2, augmented, omega_fl, omega_a)
            self.weights.copy_(omega)
            self.round += 1
        self.council.end()
        with clock("broadcast"):
            self._announce()
        if self.round == round:
            return None

        with clock("evaluate"):
            accuracy, loss, accuracy_per_class = self._evaluate()
        probed = self.probes.look(self.round, omega_fl)
        if self.is_server:
            told["columns"] |= records.of_clocks(clock, waiting, self.down, self.up, self.placement.bytes)
            told["columns"] |= accuracy_over_clients(accuracy_per_class, self.data["label_histograms"])
        return Record(self.round, accuracy, loss, accuracy_per_class, generated=generated, probes=probed, **told)

    def _ahead(self, begun, clock):
        """Make a batch of later rounds' images on rank 0, which waits, if predicted to end within the wait.

        begun: when the other ranks began to train, on the round's clock. Returns False if none is made.
        """
        seconds = begun + self.server.seconds_of_others - clock.now()
        return self.server.generated.ahead(self.server.state, seconds)

    def _announce(self):
        """omega^t and the round's plan (who trains, where, with which rho), from rank 0 to every rank; or that all leave."""
        if self.is_server:
            self.down.head["round"], self.down.head["leave"] = self.round, int(self.up.of_ranks("leave").max())
            if self.round < self.config.rounds:
                self.server.begin(self.round, self.down.plan, self.pace)
        collectives.broadcast(self.comm, self.down.buffer)
        self.there.received()
        self.round, self.left = int(self.down.head["round"]), int(self.down.head["leave"])

    def _is_whole(self):
        """On rank 0, after the reduction: whether every part of the round was done, and nothing skipped in order to leave."""
        return self.up.complete() and not self.server.generated.interrupted

    def _evaluate(self):
        """(accuracy, loss, accuracy per class) of omega^t on the test set, whose chunks are divided over the ranks."""
        size, labels = self.config.evaluation.batch_size, self.data["test_labels"]
        self.model.load(self.there.start)
        own = chunks(self.data["test_images"], labels, size, self.about, self.device, self.comm.rank, self.comm.size)
        totals = evaluate(self.model, own, len(self.about.classes), -(-len(labels) // size))
        collectives.sum_everywhere(self.comm, totals)
        return summarise(totals, np.bincount(labels, minlength=len(self.about.classes)))

    def _collect(self, clock, kappa2, augmented, omega_fl, omega_a):
        """What the round's `Record` gets of rank 0, after what the reduction brought besides weights was noted: control variates,
        how the clients trained, and the ranks' speeds."""
        clients = records.of_clients(self.up, self.down.plan, self.round + 1, self.server.status)
        made = self.placement.generated(clients["client"])
        clients["images"], clients["share"] = made.sum(1), self.placement.share(clients["client"])
        owed = self.server.around.owed[clients["client"]] if self.server.around else 0.0
        pay = records.of_pay(self.config, clients["status"], self.round + 1, self.server.state.available, self.data["told"].sum(), owed)
        if self.host.variates is not None:
            self.server.control(self.host.variate_sum.value(), self.down, np.isfinite(clients["update_norm"]))
        self.server.note(clients)
        trained = clients["rank"] != NOBODY
        samples, seconds, rank = (clients[name][trained] for name in ("samples", "seconds", "rank"))
        self.pace.measure(samples * clients["epochs"][trained], seconds, rank.astype(int))
        if augmented:  # by the same trainer on rank 0
            self.pace.speeds[0].measure(augmented.samples * self.config.augmented.epochs, clock.seconds["augment"])
        columns = {
            "kappa1": 1 - kappa2, "kappa2": kappa2, "images": self.server.state.generated.sum(),
            "images_used": len(self.server.generated),
            "augmented_loss": augmented.loss_last_epoch if augmented else np.nan,
            **pay, **records.of_cohort(self.placement.own(clients["client"]) + made, self.data["label_histograms"]),
            **records.of_models(clients, self.weights, omega_fl, omega_a, self.model.parameters),
        }
        looked = {}
        if self.server.asked and laboratory.is_due(self.config, self.round + 1):
            looked = laboratory.look(self.server.asked, self.server.kappa.__name__, kappa2, self.council.test)
        return {"columns": columns, "clients": clients, "ranks": records.of_ranks(self.up, self.round + 1), "laboratory": looked,
                "audit": records.of_audit(self.up, clients)}


def resolve(config, comm):
    """`config` with everything filled in that the machine or another setting decides. Collective."""
    return filled_in(config, *devices.resolve(comm, config.runtime))
