"""Clients of a cohort that are trained as one batched computation: so many, in their order in the cohort, as training.together
says, on whatever rank they have been given to."""

from itertools import accumulate

import numpy as np

from genfl_mpi import streams
from genfl_mpi.learning.together import Twin
from genfl_mpi.learning.training import at_round
from genfl_mpi.mpi import failing
from genfl_mpi.mpi.messages import NOBODY


def twin(config, model, about):
    """The `Twin` of a `FlatModel` that trains clients together, or None if each is trained alone. Raises UserError."""
    wanted = config.trains_clients and config.training.together > 1
    return Twin(model, about.shape, config.training) if wanted else None


def train(simulation, clock):
    """Train this rank's groups of clients from omega^t, add them to the exact sum, and note how they went: as
    `Simulation._train_client` does for one."""
    ranks, together = simulation.down.plan["rank"], simulation.config.training.together
    heard = np.flatnonzero(ranks != NOBODY).tolist()
    for first in range(0, len(heard), together):
        places = heard[first : first + together]
        if ranks[places[0]] == simulation.comm.rank and not simulation.leaving():
            _train_group(simulation, places, clock)


def _train_group(simulation, places, clock):
    """Of the group's time each client is said to have taken a part that goes with its samples and epochs, one after another."""
    plan, config, start, done = simulation.down.plan[places], simulation.config, clock.now(), []
    clients, epochs = plan["client"].tolist(), plan["epochs"].tolist()
    simulation.note("train", clients[0])
    training = at_round(config.training, simulation.round)
    with failing.named(f"clients {', '.join(map(str, clients))}"):
        trained = simulation.twin.train(
            simulation.there.start,
            [simulation.samples_of(client) for client in clients],
            [training.model_copy(update={"epochs": passes}) for passes in epochs],
            [streams.generator(config.seed, "client", simulation.round, client) for client in clients], simulation.mu)
    for place, client, rho, (weights, report) in zip(places, clients, plan["rho"].tolist(), trained):
        with failing.named(f"client {client}"):
            done.append((place, report, *simulation._add(place, rho, weights, report)))
    ends = [0, *accumulate(report.samples * passes for (_, report, *_), passes in zip(done, epochs))]
    second = (clock.now() - start) / ends[-1]
    for one, before, after in zip(done, ends, ends[1:]):
        simulation._note(*one, start + before * second, (after - before) * second)
