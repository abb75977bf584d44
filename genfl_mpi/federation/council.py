"""What all ranks do for the server's policies between training and aggregation: try models, average some of the cohort's.

Only runs with such a policy, or with a laboratory, have a council, and only then more travels than two messages a round: 4 bytes
a weight for each model that is tried, 8 more for each average of a part of the cohort. None of it depends on the number of
clients. A rank keeps the models of its own clients, 4 bytes a weight each, if a rho policy is asked after training.
"""

import numpy as np
import torch

from genfl_mpi.data import public
from genfl_mpi.data.clients import client_data
from genfl_mpi.federation.messages import CLIENT_FIELDS
from genfl_mpi.federation.policies import needed
from genfl_mpi.learning.aggregation import cosine
from genfl_mpi.learning.evaluation import chunks, evaluate, summarise
from genfl_mpi.learning.weights import ExactSum, bound
from genfl_mpi.mpi import collectives, failing
from genfl_mpi.util import streams

JUDGE, TEST, AVERAGE, COSINES, DISMISS = range(5)
MOST_CHUNKS = 2**20  # in which all ranks together try a model: a bound, for the losses' sum


class Council:
    """simulation: the `Simulation`, of which it uses what stays the same; rho: its rho policy."""

    def __init__(self, simulation, rho):
        self.simulation, self.comm, self.config = simulation, simulation.comm, simulation.config
        self.model, self.down, self.about = simulation.model, simulation.down, simulation.about
        self.keeps = "models" in needed(rho) and self.config.trains_clients
        judges = self.config.validation.source != "none"
        self.judge = (lambda weights: self._try(JUDGE, weights)) if judges else None
        self.sits = self.keeps or judges or self.config.laboratory.every is not None
        self.kept = {}  # the models of this rank's clients, by their place in the cohort
        self.order = np.zeros(1, dtype=np.int64)
        self.weights = np.zeros(len(self.model.weights) if self.sits else 0, dtype=np.float32)
        self.coefficients = np.zeros(len(self.down.plan))
        self.total = ExactSum(np.zeros(len(self.weights) if self.keeps else 0, dtype=np.int64))

    def keep(self, place, weights, since):
        """Put a client's trained model aside, by its place in the cohort, for the exact sum; returns and raises what
        `ExactSum.add` does."""
        measured = self.total.add(0.0, weights, since)
        self.kept[place] = weights.to("cpu", copy=True)
        return measured

    def weigh(self, up, total):
        """Ask a rho policy that is asked after training, and add what it makes of this rank's models to the exact sum `total`.

        up: the `Up` message, in which each rank has the rows of its own clients. Of a round that is not whole the policy is not
        asked, nor about clients that were dropped. Collective.
        """
        if not self.keeps:
            return
        rows = up.clients.copy()
        collectives.arrive(self.comm)
        collectives.reduce_sum(self.comm, rows.view(np.int64))
        if self.comm.rank == 0:
            reports = dict(zip(CLIENT_FIELDS, rows.T))
            counted = np.isfinite(reports["update_norm"])
            if reports["samples"].all() and counted.any() and not self.simulation.server.generated.interrupted:
                self._ask(counted, reports)
        self.end()
        self.coefficients[:] = self.down.plan["rho"]  # of rank 0, which are 0 if nobody was asked
        collectives.broadcast(self.comm, self.coefficients)
        for place, weights in self.kept.items():
            with failing.named(f"client {self.down.plan['client'][place]}"):
                total.add(self.coefficients[place], weights)
        self.kept.clear()

    def end(self):
        """The end of a council, of which there may be two in a round: rank 0 lets the others go, who did what it asked."""
        if not self.sits:
            return
        if self.comm.rank == 0:
            return self._order(DISMISS)
        while True:
            collectives.broadcast(self.comm, self.order)
            if (order := int(self.order[0])) == DISMISS:
                return
            {AVERAGE: self._average, COSINES: self._cosines}.get(order, lambda: self._measure(order))()

    def _ask(self, counted, reports):
        """Let the rho policy weigh the clients that are `counted`, bool (cohort,). On rank 0."""
        def average(coefficients):
            """The exact sum of the models with float64 coefficients (K,) in [0, 1]: float32 (size,)."""
            self.coefficients[:] = 0
            self.coefficients[counted] = coefficients
            bound(self.coefficients, reports["largest_weight"])
            self._order(AVERAGE)
            return self._average().value().float().numpy()

        def cosines(weights):
            """Cosine of each client's change of the parameters with that of float32 `weights` (size,): float64 (K,)."""
            self._order(COSINES)
            self.weights[:] = weights
            return self._cosines()[counted]

        self.simulation.server.weigh(
            self.down.plan, counted, reports={name: column[counted] for name, column in reports.items()},
            weights=self.down.weights, parameters=self.model.parameters, judge=self.judge, average=average, cosines=cosines)

    def _order(self, what):
        self.order[0] = what
        collectives.broadcast(self.comm, self.order)

    def test(self, weights):
        """(loss, accuracy) of float32 `weights` (size,) on the test set. On rank 0, before the `end`."""
        return self._try(TEST, weights)

    def _try(self, order, weights):
        self._order(order)
        self.weights[:] = weights
        return self._measure(order)

    def _measure(self, order):
        collectives.broadcast(self.comm, self.weights)
        self.model.load(torch.from_numpy(self.weights))
        classes = len(self.about.classes)
        totals = np.zeros(classes + 2, dtype=np.int64)
        size, device = self.config.evaluation.batch_size, self.model.weights.device
        for images, labels in self._own_share("test" if order == TEST else self.config.validation.source):
            totals[:-1] += evaluate(self.model, chunks(images, labels, size, self.about, device), classes, MOST_CHUNKS)
            totals[-1] += len(labels)
        collectives.sum_everywhere(self.comm, totals)
        if not totals[-1]:
            raise FloatingPointError("there are no data to try a model on: validation.source=generated, and no image passed")
        accuracy, loss, _ = summarise(totals[:-1], totals[-1:])
        return loss, accuracy

    def _own_share(self, source):
        """The data on which this rank tries models, in pieces (uint8 images, int64 labels)."""
        data, server = self.simulation.data, self.simulation.server
        if source == "clients":
            for client, rank in zip(self.down.plan["client"].tolist(), self.down.plan["rank"].tolist()):
                if rank == self.comm.rank:
                    yield client_data(data, client, self.config)
        elif source == "generated":
            if self.comm.rank == 0:
                images, labels = (np.concatenate(parts) for parts in (server.generated.images, server.generated.labels))
                chosen = self._some(len(labels))
                yield images[chosen], labels[chosen]
        else:
            images, labels = (data[f"{'test' if source == 'test' else 'train'}_{what}"] for what in ("images", "labels"))
            chosen, size = np.arange(len(labels)), self.config.evaluation.batch_size
            if source == "pool":
                pool = public.pool(labels, self.config.data.public_pool, len(self.about.classes))
                chosen = pool[self._some(len(pool))]
            for start in range(self.comm.rank * size, len(chosen), self.comm.size * size):
                own = chosen[start : start + size]
                yield images[own], labels[own]

    def _some(self, count):
        """Numbers below `count`, of at most validation.samples, in rising order."""
        return np.sort(streams.generator(self.config.seed, "validation").permutation(count)[: self.config.validation.samples])

    def _average(self):
        collectives.broadcast(self.comm, self.coefficients)
        self.total.units[:] = 0
        for place, weights in self.kept.items():
            self.total.add(self.coefficients[place], weights)
        collectives.arrive(self.comm)
        collectives.reduce_sum(self.comm, self.total.units)
        return self.total

    def _cosines(self):
        collectives.broadcast(self.comm, self.weights)
        row = np.zeros(len(self.coefficients))
        start, other = torch.from_numpy(self.down.weights), torch.from_numpy(self.weights)
        for place, weights in self.kept.items():
            row[place] = cosine(weights, other, start, self.model.parameters)
        collectives.arrive(self.comm)
        collectives.reduce_sum(self.comm, row.view(np.int64))
        return np.nan_to_num(row)
