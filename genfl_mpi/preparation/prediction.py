"""Predict the time of a run's rounds from measured costs, without computing them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.federation import refinements
from genfl_mpi.federation.evaluator import is_due
from genfl_mpi.federation.messages import NO_RANK, Broadcast
from genfl_mpi.federation.policies.selection import largest_cohort
from genfl_mpi.federation.server import planning_server
from genfl_mpi.federation.shared_generation import IN_BANK, Report, able_ranks_of
from genfl_mpi.mpi.round_time import exchange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.server import Server
    from genfl_mpi.federation.server_images import ServerImages
    from genfl_mpi.federation.shared_generation import Division
    from genfl_mpi.generation.bank import Batch
    from genfl_mpi.mpi.round_time import Cluster
    from genfl_mpi.preparation.calibration import Costs

MAX_ROUNDS = 300  # rounds predicted; the mean of their second half stands for every later round
PARTS = ("longest rank", "server", "waiting", "exchange", "refining", "testing", "rest")


def predict(
    config: Config,
    arrays: dict[str, np.ndarray],
    costs: Costs,
    cluster: Cluster,
    made: set[Batch] | None = None,
) -> dict[str, np.ndarray]:
    """Predict the seconds of each part of a round, for at most MAX_ROUNDS rounds.

    The run's server selects the cohorts, plans the images and schedules, round by round. arrays: of
    `load_and_divide`. made: batches that runs before it have generated; those of this run are added. Returns
    {part: float64 (rounds,)} for PARTS, and under "round" the sum of all parts except waiting and server.
    """
    # The images of cohort_deficit are known only when the cohort is; deficit makes the same number.
    if config.generation.plan == "cohort_deficit":
        settings = config.generation.model_copy(update={"plan": "deficit"})
        config = config.model_copy(update={"generation": settings})
    config = _with_images_of_one_server(config)
    alone, costs = costs.batch, _slowed(costs, cluster.crowding)
    made = set() if made is None else made
    able = able_ranks_of(config, cluster.ranks, cluster.ranks_per_node, cluster.cores)
    server = planning_server(config, arrays, cluster.ranks, made, able)
    generation = _Generation(server.images, made, costs)
    wanted = list(server.images.batches_from(server.state, 0)) if config.generates else []
    later = iter([batch for batches in wanted for batch in batches])
    every_round = {
        "exchange": exchange(costs.broadcast_bytes, costs.reduction_bytes, cluster),
        "rest": costs.rest,
    }
    rounds = [
        _predict_round(
            round, server, generation, wanted[round] if round < len(wanted) else [], later, costs, alone
        )
        | {
            "testing": evaluation_seconds(
                config, len(arrays["test_labels"]), costs.test, cluster.ranks, round + 1
            )
        }
        | every_round
        for round in range(min(config.rounds, MAX_ROUNDS))
    ]
    seconds = {part: np.array([one[part] for one in rounds]) for part in PARTS}
    seconds["round"] = np.sum([seconds[part] for part in PARTS if part not in ("server", "waiting")], axis=0)
    return seconds


def _with_images_of_one_server(config: Config) -> Config:
    """Return a run in which the cloud makes, for each of its averages, the images that edge servers make."""
    if config.time.generators == "cloud":
        return config
    made = {name: getattr(config.generation, name) * config.cells for name in ("per_round", "cap")}
    made["per_round"] *= config.time.cloud_every
    return config.model_copy(
        update={
            "generation": config.generation.model_copy(update=made),
            "time": config.time.model_copy(update={"generators": "cloud"}),
        }
    )


def evaluation_seconds(config: Config, samples: int, seconds: float, ranks: int, round: int) -> float:
    """Predict the seconds of the evaluation after a round, whose chunks are divided over the ranks.

    samples: of the test set; seconds: to evaluate all of it on one rank; round: starts at 1.
    """
    settings = config.evaluation
    whole, subset = (-(-count // settings.batch_size) for count in (samples, min(samples, settings.subset)))
    chunks = -(-whole // ranks) * is_due(config, round)
    if settings.every > 1:
        chunks += -(-subset // ranks)
    return seconds * chunks / whole


def total_seconds(rounds: np.ndarray, config: Config) -> float:
    """Extrapolate the seconds of all rounds from those predicted, `rounds` (float64)."""
    return rounds.sum() + (config.rounds - len(rounds)) * rounds[len(rounds) // 2 :].mean()


class _Generation:
    """The generation of a predicted run: which batches exist, and the seconds that the others take.

    made: the batches that count as generated, also for `images`.
    """

    def __init__(self, images: ServerImages, made: set[Batch], costs: Costs) -> None:
        self.images, self.made, self.costs = images, made, costs

    def make(self, batches: list[Batch]) -> float:
        """Generate the missing ones of `batches`, at any time. Returns seconds."""
        return sum(self._make(batches)[:2])

    def make_now(self, batches: list[Batch]) -> float:
        """Generate the batches of the current round, and add them to the images. Returns seconds."""
        load, seconds, missing = self._make(batches)
        self.images.speed.measure(missing, seconds)
        self.images.loading.measure(1, load)
        self.images.generators.is_loaded[0] |= missing > 0
        for batch in batches:
            self.images.add(batch.label, np.empty((len(batch), 0)), np.full(len(batch), np.nan))
        return load + seconds

    def share(self, division: Division, batch_seconds: float, batches: list[Batch]) -> float:
        """Generate the missing ones of a round's `batches` on several ranks. Returns seconds.

        batch_seconds: for a batch, while the other ranks do not compute.
        """
        generators = self.images.generators
        taken = np.bincount(division.ranks[division.ranks != IN_BANK], minlength=len(generators.able))
        loads = np.where((taken > 0) & ~generators.is_loaded, self.costs.load, 0.0)
        generators.measure(Report(taken, taken * batch_seconds, loads, False, 0.0))
        self.made.update(batches)
        return float((loads + taken * batch_seconds).max())

    def _make(self, batches: list[Batch]) -> tuple[float, float, int]:
        """Return the seconds to load the generator, those to generate, and the number of new batches."""
        missing = [batch for batch in batches if not self.images.is_made(batch)]
        load = self.costs.load if missing and not self.made else 0.0
        self.made.update(missing)
        return load, len(missing) * self.costs.batch, len(missing)


def _predict_round(
    round: int,
    server: Server,
    generation: _Generation,
    batches: list[Batch],
    later: Iterator[Batch],
    costs: Costs,
    batch_seconds: float,
) -> dict[str, float]:
    """Let the server plan a round, and predict the parts of it that depend on the schedule.

    batches: of this round; later: those of all rounds, for generation ahead; batch_seconds: to generate one
    while the other ranks do not compute.
    """
    config, message = (
        server.config,
        Broadcast(0, largest_cohort(server.config), {}),
    )
    server.select(round, message)
    early = busy = 0.0
    if server.images.division:
        early = generation.share(server.images.division, batch_seconds, batches)
    if config.generates and not config.has_server_images:
        # The clients train on these images, so that every rank waits for them.
        early += generation.make_now(batches)
        if config.sends:
            server.send(message.plan)
    if server.world and config.trains_clients:
        server.world.commit(server.status)
    trained = message.plan[message.plan["rank"] != NO_RANK]
    units = server.state.samples[trained["client"]] * trained["epochs"]
    seconds = (units + costs.overhead) / costs.rate
    if config.has_server_images:
        busy = generation.make_now(batches)
        if config.augments and server.images.is_due(round) and (images := len(server.images)):
            busy += (images * config.augmented.epochs + costs.overhead) / costs.rate
    # without clients, bincount returns integers
    ends = np.bincount(trained["rank"], seconds, len(server.pace.speeds)).astype(np.float64)
    ends[0] += busy
    ends += costs.first if round == 0 else 0.0
    # While it waits for the other ranks, rank 0 generates later batches as long as one fits.
    others = server.seconds_of_others
    while generation.made and ends[0] + costs.batch <= others and (batch := next(later, None)):
        ends[0] += generation.make([batch])
    server.pace.measure(units, seconds, trained["rank"])
    return {
        "longest rank": early + ends.max(),
        "server": early + busy,
        "waiting": (ends.max() - ends).mean(),
        "refining": refinements.passes(config, len(trained), len(server.images))
        / (refinements.PASSES_OF_TRAINING * costs.rate),
    }


def _slowed(costs: Costs, factor: float) -> Costs:
    """Return the costs on ranks that share cores, so that everything they compute takes `factor` as long."""
    scaled = {name: factor * getattr(costs, name) for name in ("batch", "test", "first", "load")}
    return replace(costs, rate=costs.rate / factor, **scaled)
