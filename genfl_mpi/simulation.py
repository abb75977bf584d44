"""The round of generative federated learning (GenFL), with the paper's steps in the paper's order."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from genfl_mpi import streams
from genfl_mpi.clock import Clock
from genfl_mpi.config import single
from genfl_mpi.data import datasets, public
from genfl_mpi.data.corruption import bad_clients, mislabel, spoil
from genfl_mpi.data.labels import label_histograms, share
from genfl_mpi.data.partition import partition
from genfl_mpi.errors import UserError
from genfl_mpi.learning import models
from genfl_mpi.learning.aggregation import cosine, distance, mean_cosine
from genfl_mpi.learning.evaluation import accuracy_over_clients, evaluate, summarise
from genfl_mpi.learning.training import at_round, local_batches, normalise, train
from genfl_mpi.learning.weights import ExactSum, FlatModel
from genfl_mpi.mpi import collectives, devices, failing
from genfl_mpi.mpi.messages import CLIENT_FIELDS, Down, Up
from genfl_mpi.mpi.schedule import Speed
from genfl_mpi.results.variates import Variates
from genfl_mpi.server import Server
from genfl_mpi.settings import Config


@dataclass(frozen=True)
class Record:
    """What a round leaves behind: the global model's test figures on every rank, the rest on rank 0 (elsewhere empty).

    accuracy_per_class: float64 (classes,). columns: the other numbers of the results' /rounds. clients: columns of
    /clients, arrays (cohort,). generated: (key, batch, uint8 images, fidelity) of each batch of this round.
    """

    round: int
    accuracy: float
    loss: float
    accuracy_per_class: np.ndarray
    columns: dict
    clients: dict
    generated: list


class Simulation:
    """One run; iterating over it computes its rounds. Every rank of `comm` must construct and iterate together.

    source: a YAML file, a dict, a `Config`, or None for the embedded default; overrides: "key=value" strings, as on the
    command line. comm: an mpi4py communicator, by default all ranks. folder: where clients keep what they remember, if the
    algorithm wants that, by default `variates` in config.output. note: a function that is told (phase, client, round) of what
    this rank begins. leaving: a function that returns an exit status when the ranks were asked to leave, and else 0: the
    iteration then ends early, and `left` has the status. policies: functions of a `ServerState` named select, rho, kappa or
    plan, that take the place of the configured ones.
    Raises UserError on every rank if the configuration cannot be run.
    """

    def __init__(self, source=None, overrides=(), *, comm=None, folder=None, note=lambda *_, **__: None, leaving=lambda: 0,
                 **policies):
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
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.runtime.tf32
        if config.data.download:
            collectives.together(self.comm, lambda: self.is_server and datasets.download(config.data))
        self.data, self._window = collectives.node_shared(self.comm, lambda: load_and_divide(config))
        module = models.build(config.model, len(self.about.classes), self.about.shape, streams.integer(config.seed, "init"))
        self.model = FlatModel(module, self.device)
        cohort = config.cohort if config.trains_clients else 0
        scaffold = config.algorithm.name == "scaffold"
        variate = self.model.parameters if scaffold else 0
        self.down = Down(len(self.model.weights), cohort, variate)
        self.up = Up(len(self.model.weights), cohort, self.comm.size, variate)
        self.sum = ExactSum(self.up.units)
        self.variate_sum = ExactSum(self.up.variate_units)
        self.variates = Variates(folder or Path(config.output) / "variates", variate) if scaffold else None
        self.weights = torch.from_numpy(self.down.weights)  # omega^t
        self.weights.copy_(self.model.weights)
        self.mu = config.algorithm.mu if config.algorithm.name == "fedprox" else 0.0
        self.round = 0
        self.speeds = [Speed() for _ in range(self.comm.size)]
        self.server = collectives.together(self.comm, lambda: self.is_server and Server(config, self.about, self.data, self.device, policies))

    def restore(self, round, weights, state, labels, images, fidelity):
        """Continue after `round` finished rounds. On rank 0 alone: the weights, the server's state, the images so far."""
        self.round = round
        if self.is_server:
            self.weights.copy_(torch.as_tensor(weights))
            self.server.remember(state, self.down)
            self.server.add_generated(labels, images, fidelity)

    def close(self):
        """Give the node's shared memory back; collective. For scripts that make many simulations."""
        self.data = None
        self._window.Free()

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
        generated, omega_a, augmented, round = [], None, None, self.round
        self.up.clear()

        # Data augmentation (III-B): the server generates, and trains omega_a on what it generated ...
        if self.is_server and self.config.augments:
            with clock("generate"):
                generated = self.server.generate(self.leaving)
            with clock("augment"):
                omega_a, augmented = self.server.train_augmented(self.model, self.weights, self.leaving)

        # ... while the clients train (III-C): each rank adds up rho_n omega_n of its own.
        with clock("train"):
            for place, (rho, client, rank, since, epochs) in enumerate(self.down.plan.tolist()):
                if rank == self.comm.rank and not self.leaving():
                    self._train_client(place, client, rho, since, epochs, clock)
        ahead = self.server.generate_ahead if self.is_server and self.config.generates else None
        self.note("wait")
        waiting = collectives.arrive(self.comm, ahead, self.leaving)
        self.up.ranks[self.comm.rank] = clock.seconds["train"], waiting.idle_seconds, self.leaving()

        # Aggregation (III-D), Eq. (1).
        with clock("reduce"):
            collectives.reduce_sum(self.comm, self.up.buffer)
        columns, clients = {}, {}
        if self.is_server and self._is_whole():
            omega_fl = None
            if self.config.trains_clients:
                omega_fl = self.server.average(self.sum.value(), self.weights, self.down.plan, self.up)
            omega, kappa2 = self.server.aggregate(self.weights, omega_fl, omega_a, self.model.parameters)
            columns, clients = self._collect(clock, kappa2, augmented, omega_fl, omega_a)
            self.weights.copy_(omega)
            self.round += 1
        with clock("broadcast"):
            self._announce()
        if self.round == round:
            return None

        with clock("evaluate"):
            accuracy, loss, accuracy_per_class = self._evaluate()
        if self.is_server:
            columns |= self._timings(clock, waiting) | accuracy_over_clients(accuracy_per_class, self.data["label_histograms"])
        return Record(self.round, accuracy, loss, accuracy_per_class, columns, clients, generated)

    def _announce(self):
        """omega^t and the round's plan (who trains, where, with which rho), from rank 0 to every rank; or that all leave."""
        if self.is_server:
            self.down.head["round"], self.down.head["leave"] = self.round, int(self.up.of_ranks("leave").max())
            if self.round < self.config.rounds:
                self.server.begin(self.round, self.down.plan, self.speeds)
        collectives.broadcast(self.comm, self.down.buffer)
        self.round, self.left = int(self.down.head["round"]), int(self.down.head["leave"])

    def _is_whole(self):
        """On rank 0, after the reduction: whether every part of the round was done, and nothing skipped in order to leave."""
        return self.up.of_clients("samples").all() and not self.server.interrupted  # a client that has trained has samples

    def _train_client(self, place, client, rho, since, epochs, clock):
        """Train one client from omega^t, add rho_n omega_n to the exact sum, and note how it went. A client whose loss or weights
        are not finite is an ArithmeticError, or stays outside the sum, with an update of length NaN."""
        self.note("train", client)
        start = clock.now()
        images, labels = client_data(self.data, client, self.config)
        images = normalise(torch.from_numpy(images), self.about.mean, self.about.std, self.device)
        labels = torch.from_numpy(labels).to(self.device)
        settings, correction = at_round(self.config.training, self.round).model_copy(update={"epochs": epochs}), None
        rng = streams.generator(self.config.seed, "client", self.round, client)
        with failing.named(f"client {client}"):
            if self.variates is not None:  # SCAFFOLD (Karimireddy et al. 2020): every gradient is corrected by c - c_n
                common, own = torch.from_numpy(self.down.variate), torch.from_numpy(self.variates.read(client, since))
                correction = (common - own).to(self.device)
            report = train(self.model, self.weights, images, labels, settings, rng, self.mu, correction)
            try:
                report.check()
                largest, update_norm = self.sum.add(rho, self.model.weights, self.weights[: self.model.parameters])
            except ArithmeticError:
                if self.config.faults.nonfinite == "stop":
                    raise
                largest, update_norm = 0.0, np.nan
            else:
                if self.variates is not None:
                    self._control(client, own, common, settings, len(images))
        self.up.clients[place] = (report.samples, report.loss_first_epoch, report.loss_last_epoch, report.accuracy_last_epoch,
                                  update_norm, largest, start, clock.now() - start, self.comm.rank)

    def _control(self, client, own, common, settings, samples):
        """SCAFFOLD's new variate of a client that has trained, by option II:
        c_n <- c_n - c + (omega^t - omega_n) / (steps lr)."""
        size = self.model.parameters
        steps = settings.epochs * local_batches(samples, settings.batch_size)
        moved = self.weights[:size] - self.model.weights[:size].cpu()
        new = own - common + moved / (steps * settings.lr)
        self.variates.write(client, self.round + 1, new.numpy())
        self.variate_sum.add(1 / self.config.clients, new - own)

    def _evaluate(self):
        """(accuracy, loss, accuracy per class) of omega^t on the test set, whose chunks are divided over the ranks."""
        size = self.config.evaluation.batch_size
        images, labels = self.data["test_images"], self.data["test_labels"]
        self.model.weights.copy_(self.weights)
        chunks = ((normalise(torch.from_numpy(images[i : i + size].copy()), self.about.mean, self.about.std, self.device),
                   torch.from_numpy(labels[i : i + size].copy()).to(self.device))
                  for i in range(self.comm.rank * size, len(labels), self.comm.size * size))
        totals = evaluate(self.model, chunks, len(self.about.classes), -(-len(labels) // size))
        collectives.sum_everywhere(self.comm, totals)
        return summarise(totals, np.bincount(labels, minlength=len(self.about.classes)))

    def _collect(self, clock, kappa2, augmented, omega_fl, omega_a):
        """What the reduction brought to rank 0 besides weights: control variates, columns of /rounds and of /clients, and the
        ranks' speeds."""
        clients = dict(zip(CLIENT_FIELDS, self.up.clients.T.copy()))
        del clients["largest_weight"]
        plan = self.down.plan
        if self.variates is not None:
            self.server.control(self.variate_sum.value(), self.down, np.isfinite(clients["update_norm"]))
        clients |= {"client": plan["client"].copy(), "rho": plan["rho"].copy(), "epochs": plan["epochs"].copy(), "round": np.full(len(plan), self.round + 1)}
        counted = plan["rho"] > 0  # without those that were dropped
        rho = plan["rho"][counted]
        for rank, speed in enumerate(self.speeds):
            own = clients["rank"] == rank
            speed.measure(clients["samples"][own] @ clients["epochs"][own], clients["seconds"][own].sum())
        if augmented:  # by the same trainer on rank 0
            self.speeds[0].measure(augmented.samples * self.config.augmented.epochs, clock.seconds["augment"])
        before, size, norms = self.weights, self.model.parameters, clients["update_norm"][counted]
        columns = {
            "update_cosine": mean_cosine(rho, norms, distance(omega_fl, before, size)) if len(plan) else np.nan,
            "augmented_cosine": cosine(omega_fl, omega_a, before, size) if len(plan) and omega_a is not None else np.nan,
            "kappa1": 1 - kappa2, "kappa2": kappa2, "clients_trained": len(plan),
            **{name: rho @ clients[field][counted] / rho.sum() if len(plan) else np.nan
               for name, field in (("train_loss", "loss_last_epoch"), ("train_accuracy", "accuracy_last_epoch"))},
            "images": self.server.state.generated.sum(), "images_used": sum(map(len, self.server.labels)),
            "augmented_loss": augmented.loss_last_epoch if augmented else np.nan,
            "train_seconds": self.up.of_ranks("train_seconds").max(), "wait_seconds": self.up.of_ranks("wait_seconds").mean(),
        }
        return columns, clients

    def _timings(self, clock, waiting):
        """Rank 0's clock as columns of /rounds, and the bytes of the two messages."""
        return {
            "round_seconds": clock.now(),
            "generate_start_seconds": clock.starts.get("generate", np.nan),
            **{f"{phase}_seconds": clock.seconds.get(phase, 0.0) for phase in ("generate", "augment", "reduce", "broadcast", "evaluate")},
            "generate_ahead_seconds": waiting.working_seconds,
            "broadcast_bytes": self.down.buffer.nbytes, "reduce_bytes": self.up.buffer.nbytes,
        }


def resolve(config, comm):
    """`config` with everything filled in that the machine or another setting decides. Collective."""
    threads, device = devices.resolve(comm, config.runtime)
    generation = config.generation
    where = device if generation.device == "auto" else generation.device
    filled_in = {
        "device": where,
        "dtype": generation.dtype if generation.dtype != "auto" else ("float32" if where == "cpu" else "float16"),
        "seed": config.seed if generation.seed is None else generation.seed,
        "threads": generation.threads or threads,
    }
    return config.model_copy(update={
        "runtime": config.runtime.model_copy(update={"threads": threads, "device": device}),
        "generation": generation.model_copy(update=filled_in),
    })


def client_data(data, client, config):
    """What a client trains on: uint8 images (n, C, H, W) and int64 labels (n,), with its camera's and its hand's mistakes,
    and behind its own the shared ones of the public pool."""
    own = slice(data["pointers"][client], data["pointers"][client + 1])
    images, labels = data["train_images"][data["indices"][own]], data["client_labels"][own].copy()
    if data["bad"][client] and config.bad_clients.kind != "mislabelled":
        images = spoil(images, config.bad_clients.kind, streams.generator(config.seed, "spoil", client))
    if config.data.shared:
        given = data["given"]
        images, labels = np.concatenate([images, data["train_images"][given]]), np.concatenate([labels, data["train_labels"][given]])
    return images, labels


def load_and_divide(config):
    """The arrays that a node holds once: the data set, the clients' slices of it, and their label histograms.

    What remains of the training set after the public pool is divided over the clients.
    """
    arrays = datasets.load(config.data)
    classes = len(datasets.describe(config.data).classes)
    labels = arrays["train_labels"]
    held = np.setdiff1d(np.arange(len(labels)), public.pool(labels, config.data.public_pool, classes))
    pointers, indices = partition(labels[held], config.clients, classes, config.partition, config.seed)
    indices = held[indices]
    client_labels, bad = labels[indices], bad_clients(config.clients, config.bad_clients, config.seed)
    if config.bad_clients.kind == "mislabelled":
        for client in np.flatnonzero(bad):
            own = slice(pointers[client], pointers[client + 1])
            client_labels[own] = mislabel(client_labels[own], classes, streams.generator(config.seed, "spoil", client))
    histograms = label_histograms(client_labels, pointers, classes)
    shared = share(histograms, config.label_sharing, config.seed)
    given = {"given": public.pool(labels, config.data.shared, classes)} if config.data.shared else {}
    return {**arrays, **given, "pointers": pointers, "indices": indices, "client_labels": client_labels, "bad": bad,
            "label_histograms": histograms, "shared_labels": shared}
