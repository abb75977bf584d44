"""Predict the cost of a run on any number of ranks from a short measurement here: the `plan` command."""

from __future__ import annotations

import math
import resource
import tempfile
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genfl_mpi.config.settings import Composition
from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.federation.messages import NO_RANK, Broadcast
from genfl_mpi.federation.server import planning_server
from genfl_mpi.federation.simulation import Simulation, resolve
from genfl_mpi.generation.generator import Generator
from genfl_mpi.mpi import collectives, devices, measure
from genfl_mpi.mpi.round_time import Cluster, exchange, loads, measure_copy_rate
from genfl_mpi.mpi.schedule import Pace
from genfl_mpi.preparation import gpu_memory
from genfl_mpi.preparation.preview import planned_batches
from genfl_mpi.results import environment
from genfl_mpi.results.checkpoint import KEPT_NEWEST, keep_interval
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.records import Record
    from genfl_mpi.generation.bank import Batch
    from genfl_mpi.mpi.collectives import MPI

# Clients per round, and seconds of measurement, that suffice to estimate the cost of a client.
CALIBRATION_CLIENTS, CALIBRATION_SECONDS = 4, 8.0
MIN_STEPS = 2  # denoising steps of the first timed batch
MAX_ROUNDS = 300  # rounds predicted; the mean of their second half stands for every later round
TOLERANCE = 1.05  # the smallest number of ranks within this factor of the best time is recommended
PARTS = ("longest rank", "server", "waiting", "exchange", "testing", "rest")


@dataclass(frozen=True)
class Costs:
    """Measured costs of one rank on this machine.

    rate: training speed, samples/s; overhead: of a client, in samples; batch: s per batch of images; test: s
    to evaluate the test set; rest: s per round besides training, generation, evaluation and waiting; first: s
    by which a rank's first round is longer; load: s to load the generator; copy_rate: of memory, B/s;
    rank_bytes, server_bytes: memory of a rank, and of rank 0; shared_bytes: of the data set, once per node.
    """

    rate: float
    overhead: float
    batch: float
    test: float
    rest: float
    first: float
    load: float
    copy_rate: float
    broadcast_bytes: int
    reduction_bytes: int
    rank_bytes: int
    server_bytes: int
    shared_bytes: int
    checkpoint_bytes: int = 0


def calibrate(config: Config) -> Costs:
    """Measure the `Costs` of a resolved `config` on this rank alone.

    Trains a few clients for one epoch in some rounds, and generates some batches of images; the first of each
    warms up.
    """
    with tempfile.TemporaryDirectory() as folder:
        training = config.training.model_copy(update={"epochs": 1})
        few = config.model_copy(
            update={
                "method": "fedavg",
                "composition": Composition.model_validate({"images": "nowhere"}),
                "rounds": 20,
                "cohort": min(config.cohort, max(CALIBRATION_CLIENTS, training.clients_per_batch)),
                "training": training,
            }
        )
        simulation = Simulation(few, comm=collectives.single(), folder=Path(folder))
        pace = Pace(1)
        rounds: list[dict[str, Any]] = []
        start = None
        for record in simulation:
            if start is not None:  # the first round warms up
                samples, seconds = _trained(record)
                pace.measure(samples, seconds, np.zeros(len(samples), dtype=int))
                rounds.append(record.columns)
            else:
                first, start = record, time.perf_counter()
            if rounds and time.perf_counter() - start > CALIBRATION_SECONDS:
                break
        shared_bytes = sum(array.nbytes for array in simulation.data.values())
        broadcast_bytes, reduction_bytes = simulation.message_bytes
        checkpoint_bytes = simulation.checkpoint_bytes
        rank_bytes = _resident_bytes() - shared_bytes
        rests = [
            one["round_seconds"] - sum(one[f"{part}_seconds"] for part in ("train", "wait", "evaluate"))
            for one in rounds
        ]
        simulation.close()
        load, batch = _batch_seconds(config, folder) if config.generates else (0.0, 0.0)
    test = float(np.median([one["evaluate_seconds"] for one in rounds]))
    rest, rate = max(0.0, float(np.median(rests))), pace.rates()[0]
    usual = (_trained(first)[0] + pace.overhead).sum() / rate + test + rest
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Costs(
        rate=rate,
        overhead=pace.overhead,
        batch=batch,
        test=test,
        rest=rest,
        first=max(0.0, first.columns["round_seconds"] - usual),
        load=load,
        copy_rate=measure_copy_rate(),
        broadcast_bytes=broadcast_bytes,
        reduction_bytes=reduction_bytes,
        rank_bytes=rank_bytes,
        server_bytes=max(rank_bytes, peak - shared_bytes),
        shared_bytes=shared_bytes,
        checkpoint_bytes=checkpoint_bytes,
    )


def _trained(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples and seconds of a round's trained clients; an enforced world excludes some."""
    trained = record.clients["rank"] != NO_RANK
    return record.clients["samples"][trained], record.clients["seconds"][trained]


def _batch_seconds(config: Config, folder: str) -> tuple[float, float]:
    """Measure the seconds to load the generator, and to generate a batch of images.

    A batch with the configured steps is timed directly if it takes at most CALIBRATION_SECONDS; else its time
    is extrapolated linearly from two smaller numbers of steps.
    """

    def time_batch(steps: int, number: int) -> tuple[float, float]:
        generation = config.generation.model_copy(
            update={"steps": steps, "bank": f"{folder}/{number}", "seed": number}
        )
        few = config.model_copy(update={"generation": generation})
        batch = next(batch for batches in planned_batches(few) for batch in batches)
        generator, start = Generator(few, datasets.describe(few.data).shape), time.perf_counter()
        generator.load()
        loaded = time.perf_counter()
        generator.images(batch)
        return loaded - start, time.perf_counter() - loaded

    load, _ = time_batch(MIN_STEPS, 0)  # warms up
    (_, short), wanted = time_batch(MIN_STEPS, 1), config.generation.steps
    steps = min(wanted, max(2 * MIN_STEPS, int(CALIBRATION_SECONDS * MIN_STEPS / short)))
    _, long = time_batch(steps, 2)
    return load, long + max(0.0, long - short) * (wanted - steps) / (steps - MIN_STEPS)


def _resident_bytes() -> int:
    """Return the bytes of memory that this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def predict(
    config: Config, arrays: dict[str, np.ndarray], costs: Costs, cluster: Cluster
) -> dict[str, np.ndarray]:
    """Predict the seconds of each part of a round, for at most MAX_ROUNDS rounds, without computing anything.

    The run's server selects the cohorts, plans the images and schedules, round by round. arrays: of
    `load_and_divide`. Returns {part: float64 (rounds,)} for PARTS, and under "round" the sum of all parts
    except waiting and server.
    """
    # The images of cohort_deficit are known only when the cohort is; deficit makes the same number.
    if config.generation.plan == "cohort_deficit":
        config = config.model_copy(
            update={"generation": config.generation.model_copy(update={"plan": "deficit"})}
        )
    made: set[Batch] = set()
    in_bank: Any = None
    server = planning_server(config, arrays, cluster.ranks, lambda batch: batch in made or in_bank(batch))
    images, message = server.images, Broadcast(0, config.cohort if config.trains_clients else 0, {})
    wanted: list[list[Batch]] = []
    if config.generates:
        in_bank = images.generator.has
        wanted = list(images.batches_from(server.state, 0))
    later = iter([batch for batches in wanted for batch in batches])
    slow = cluster.crowding
    seconds_of: dict[str, list[float]] = {part: [] for part in PARTS}

    def train(units: Any) -> Any:
        return (units + costs.overhead) * slow / costs.rate

    def make(batches: list[Batch]) -> tuple[float, float, int]:
        missing = [batch for batch in batches if not images.ready(batch)]
        load = costs.load * slow if missing and not made else 0.0
        made.update(missing)
        return load, len(missing) * costs.batch * slow, len(missing)

    def make_now(batches: list[Batch]) -> float:
        load, seconds, missing = make(batches)
        images.speed.measure(missing, seconds)
        images.is_loaded |= missing > 0
        for batch in batches:
            images.add(batch.label, np.empty((len(batch), 0)), np.full(len(batch), np.nan))
        return load + seconds

    for round in range(min(config.rounds, MAX_ROUNDS)):
        server.select(round, message)
        batches, early = wanted[round] if round < len(wanted) else [], 0.0
        if config.generates and not config.augments:
            # The clients train on these images, so that every rank waits for them.
            early = make_now(batches)
            if config.sends:
                server.send(message.plan)
        if server.world and config.trains_clients:
            server.world.commit(server.status)
        trained = message.plan[message.plan["rank"] != NO_RANK]
        units = server.state.samples[trained["client"]] * trained["epochs"]
        seconds, busy = train(units), 0.0
        if config.augments:
            busy = make_now(batches)
            if len(images):
                busy += train(len(images) * config.augmented.epochs)
        load = np.bincount(trained["rank"], weights=seconds, minlength=cluster.ranks)
        load[0] += busy
        ends = load + (costs.first * slow if round == 0 else 0.0)
        others = server.seconds_of_others
        # While it waits for the other ranks, rank 0 generates later batches as long as one fits.
        while made and ends[0] + costs.batch * slow <= others and (batch := next(later, None)):
            ends[0] += sum(make([batch])[:2])
        server.pace.measure(units, seconds, trained["rank"])
        chunks = -(-len(arrays["test_labels"]) // config.evaluation.batch_size)
        parts = (
            early + ends.max(),
            early + busy,
            (ends.max() - ends).mean(),
            exchange(costs.broadcast_bytes, costs.reduction_bytes, cluster),
            costs.test * slow * -(-chunks // cluster.ranks) / chunks,
            costs.rest,
        )
        for part, value in zip(PARTS, parts):
            seconds_of[part].append(value)
    found = {part: np.array(values) for part, values in seconds_of.items()}
    found["round"] = found["longest rank"] + found["exchange"] + found["testing"] + found["rest"]
    return found


def total_seconds(rounds: np.ndarray, config: Config) -> float:
    """Extrapolate the seconds of all rounds from those predicted, `rounds` (float64)."""
    return rounds.sum() + (config.rounds - len(rounds)) * rounds[len(rounds) // 2 :].mean()


def describe(
    comm: MPI.Comm, config: Config, cluster: Cluster, name: str, gpus: int | None = None
) -> Iterator[str]:
    """Yield the lines of the `plan` command on rank 0.

    Collective: all ranks of `comm` measure at the same time. cluster: its threads and memory bandwidth are
    replaced by those of the run. name: of the run. gpus: per node; by default those of this node, if the run
    uses them.
    """
    unresolved = config
    threads = config.runtime.threads or max(1, cluster.cores // cluster.ranks_per_node)
    runtime = config.runtime.model_copy(update={"threads": threads})
    config = resolve(config.model_copy(update={"runtime": runtime}), comm)
    devices.set_up(comm, threads, config.runtime.device)
    costs = calibrate(config)
    each, (neighbours, seconds) = (
        comm.gather(costs),
        measure.reduction_in_node(comm, costs.reduction_bytes // 8),
    )
    if each is None:  # every rank but 0
        return
    measured = ("rate", "overhead", "batch", "test", "rest", "first", "load", "copy_rate")
    costs = replace(
        each[0], **{field: float(np.mean([getattr(one, field) for one in each])) for field in measured}
    )
    if neighbours > 1:  # derive the memory bandwidth from real messages
        here = Cluster(neighbours, 1, cluster.cores, threads, cluster.latency, cluster.bandwidth, 1.0)
        costs = replace(costs, copy_rate=exchange(0, costs.reduction_bytes, here) / seconds)
    cluster = replace(cluster, threads=threads, copy_rate=costs.copy_rate)
    arrays = load_and_divide(config)
    yield f"{name}: {config.rounds} rounds, {config.clients} clients, a cohort of {config.cohort}"
    yield ""
    yield from textwrap.wrap(_measured(config, comm.size, costs), 80, subsequent_indent="  ")
    yield from textwrap.wrap(_assumed(cluster), 80, subsequent_indent="  ")
    own = predict(config, arrays, costs, cluster)
    yield ""
    yield f"{counted(cluster.ranks, 'rank')} on {counted(cluster.nodes, 'node')}"
    whole = total_seconds(own["round"], config)
    yield (f"  seconds   {own['round'].mean():.3g} per round, {whole:,.4g} in total, without start and files")
    parts = ", ".join(f"{part} {own[part].mean():.3g}" for part in PARTS)
    yield from textwrap.wrap(parts, 80, initial_indent=" " * 12, subsequent_indent=" " * 12)
    yield (
        f"  memory    {costs.rank_bytes / 1e6:,.0f} MB per rank, {costs.server_bytes / 1e6:,.0f} MB rank 0, "
        f"{costs.shared_bytes / 1e6:,.0f} MB per node for data"
    )
    if gpus or config.runtime.device == "cuda":
        for line in gpu_memory.describe(
            unresolved, arrays, cluster.ranks_per_node, gpus or torch.cuda.device_count()
        ):
            yield from textwrap.wrap(line, 80, initial_indent="  ", subsequent_indent=" " * 12)
    yield from textwrap.wrap(_disk(config, costs), 80, subsequent_indent=" " * 12)
    yield (
        f"  bytes     {costs.broadcast_bytes / 1e6:,.3g} MB to every rank and "
        f"{costs.reduction_bytes / 1e6:,.3g} MB from every rank per round"
    )
    yield from _strong(config, arrays, costs, cluster)
    if config.trains_clients:
        yield from _weak(config, arrays, costs, cluster, own["server"].mean())


def _disk(config: Config, costs: Costs) -> str:
    """Describe the bytes of the results file, of the bank, and of the checkpoints during the run."""
    settings, size = config.checkpoint, costs.checkpoint_bytes
    keep = settings.keep
    if keep == "auto":
        limit = 1e6 * settings.max_megabytes
        keep = keep_interval(config.rounds, settings.every_rounds, size, limit)
    kept = config.rounds // keep if keep else 0
    images = (
        sum(len(batch) for batches in planned_batches(config) for batch in batches) if config.generates else 0
    )
    image_bytes = images * math.prod(datasets.describe(config.data).shape)
    banked = f" with {images} images, as many in the bank" if images else ""
    forks = f", {kept} of them kept for `fork`" if kept else ""
    return (
        f"  disk      {(costs.broadcast_bytes + image_bytes) / 1e6:,.3g} MB results{banked}; at most "
        f"{(kept + KEPT_NEWEST + 1) * size / 1e6:,.3g} MB checkpoints{forks}"
    )


def _measured(config: Config, ranks: int, costs: Costs) -> str:
    """Describe the measured costs."""
    threads = counted(config.runtime.threads or 1, "thread")
    images = (
        f"a batch of {config.generation.batch_size} images {costs.batch:.2f} s, "
        f"after {costs.load:.2f} s to load the generator; "
        if config.generates
        else ""
    )
    return (
        f"measured on {counted(ranks, 'rank')}{' at once' if ranks > 1 else ''} with {threads}, on "
        f"{config.runtime.device}, {environment.processor()}: {costs.rate:,.0f} samples/s in training, plus "
        f"{1000 * costs.overhead / costs.rate:.1f} ms per client; {images}testing {costs.test:.2f} s; "
        f"rest of a round {costs.rest:.3f} s, plus {costs.first:.2f} s in the first round; "
        f"messages in memory {costs.copy_rate / 1e9:.1f} GB/s"
    )


def _assumed(cluster: Cluster) -> str:
    """Describe what the prediction assumes of the cluster."""
    crowded = (
        f"; {cluster.ranks_per_node} ranks of {counted(cluster.threads, 'thread')} share "
        f"{counted(cluster.cores, 'core')}, so everything takes {cluster.crowding:.3g} times as long"
        if cluster.crowding > 1
        else ""
    )
    return (
        f"assumed: nodes like this one, with {counted(cluster.cores, 'core')}; {1e6 * cluster.latency:g} us "
        f"and {8 * cluster.bandwidth / 1e9:g} Gbit/s between nodes; LogGP for long messages: broadcast by "
        f"scatter and allgather, reduction by reduce-scatter and gather{crowded}"
    )


def _resized(cluster: Cluster, max_ranks: int) -> Iterable[Cluster]:
    """Yield the cluster with 1, 2, 4, ... ranks up to `max_ranks`, and with its own number, in full nodes."""
    for ranks in sorted({*(2**i for i in range(max_ranks.bit_length())), cluster.ranks}):
        yield replace(cluster, ranks=ranks, nodes=-(-ranks // cluster.ranks_per_node))


def _strong(config: Config, arrays: dict[str, np.ndarray], costs: Costs, cluster: Cluster) -> Iterator[str]:
    """Yield the strong scaling table: the same run on other numbers of ranks."""
    seconds = {
        one: total_seconds(predict(config, arrays, costs, one)["round"], config) / config.rounds
        for one in _resized(cluster, max(cluster.ranks, 2 * config.cohort))
    }
    first = next(iter(seconds.values()))
    yield "\nstrong scaling: the same run\n  ranks  nodes    s/round  speed-up  efficiency (%)"
    for one, taken in seconds.items():
        speedup = first / taken
        efficiency = 100 * speedup / one.ranks
        yield f"  {one.ranks:5d}  {one.nodes:5d}  {taken:9.3g}  {speedup:8.2f}  {efficiency:14.0f}"
    best = next(one for one, taken in seconds.items() if taken <= TOLERANCE * min(seconds.values()))
    yield f"best of these: {best.ranks} ranks; more gain less than {100 * TOLERANCE - 100:.0f} %"


def _weak(
    config: Config, arrays: dict[str, np.ndarray], costs: Costs, cluster: Cluster, busy: float
) -> Iterator[str]:
    """Yield the weak scaling table: a cohort that grows with the ranks, of clients sampled from the run's.

    busy: seconds per round that rank 0 spends as the server.
    """
    rng, sizes = np.random.default_rng(0), np.diff(arrays["pointers"])
    each = max(1, round(config.cohort / cluster.ranks))
    chunks = -(-len(arrays["test_labels"]) // config.evaluation.batch_size)
    yield f"\nweak scaling: {counted(each, 'client')} per rank\n  ranks  nodes    s/round  efficiency (%)"
    first = None
    for one in _resized(cluster, cluster.ranks):
        units = rng.choice(sizes, (10, each * one.ranks)) * config.training.epochs
        seconds = (units + costs.overhead) * one.crowding / costs.rate
        longest = np.mean([loads(cohort, busy, one.ranks).max() for cohort in seconds])
        test = costs.test * one.crowding * -(-chunks // one.ranks) / chunks
        taken = longest + exchange(costs.broadcast_bytes, costs.reduction_bytes, one) + test + costs.rest
        first = first or taken
        yield f"  {one.ranks:5d}  {one.nodes:5d}  {taken:9.3g}  {100 * first / taken:14.0f}"
