"""Predict the cost of a run on any number of ranks from a short measurement here: the `plan` command."""

from __future__ import annotations

import math
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.mpi import devices, measure
from genfl_mpi.mpi.round_time import Cluster, exchange, loads
from genfl_mpi.preparation import gpu_memory
from genfl_mpi.preparation.calibration import BATCHED_CLIENTS, Costs, batching_factor, calibrate
from genfl_mpi.preparation.prediction import PARTS, evaluation_seconds, predict, total_seconds
from genfl_mpi.preparation.preview import planned_batches
from genfl_mpi.results import environment
from genfl_mpi.results.checkpoint import KEPT_NEWEST, keep_interval
from genfl_mpi.util.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI

TOLERANCE = 1.05  # the smallest number of ranks within this factor of the best time is recommended


def describe(
    comm: MPI.Comm, config: Config, cluster: Cluster, name: str, gpus: int | None = None
) -> Iterator[str]:
    """Yield the lines of the `plan` command on rank 0.

    Collective: all ranks of `comm` measure at the same time. cluster: its threads and memory bandwidth are
    replaced by those of the run. name: of the run. gpus: per node; by default those of this node, if the run
    uses them.
    """
    unresolved = config
    config, measured, cluster = measure_costs(comm, config, cluster)
    costs = comm.bcast(measured)
    factors = comm.gather(batching_factor(config, costs) if config.trains_clients else math.nan)
    if factors is None:  # every rank but 0
        return
    arrays = load_and_divide(config)
    yield f"{name}: {config.rounds} rounds, {config.clients} clients, a cohort of {config.cohort}"
    if config.time.generators == "edges":
        yield "predicted with the images of all edge servers in the rounds of averages at the cloud"
    if config.time.is_asynchronous:
        yield f"predicted as synchronous rounds; with {config.time.driver} ranks wait less"
    yield ""
    yield from textwrap.wrap(_measured(config, comm.size, costs), 80, subsequent_indent="  ")
    yield from textwrap.wrap(_assumed(cluster), 80, subsequent_indent="  ")
    own = predict(config, arrays, costs, cluster)
    yield ""
    yield f"{counted(cluster.ranks, 'rank')} on {counted(cluster.nodes, 'node')}"
    whole = total_seconds(own["round"], config)
    yield (f"  seconds   {own['round'].mean():.3g} per round, {whole:,.4g} in total, without start and files")
    shown = [part for part in PARTS if part != "refining" or own[part].any()]
    parts = ", ".join(f"{part} {own[part].mean():.3g}" for part in shown)
    parts += f"; testing is {100 * own['testing'].sum() / own['round'].sum():.0f} % (evaluation.every)"
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
    if costs.state_bytes:
        each = config.cohort * costs.state_bytes / 1e6
        yield f"  states    {each:,.3g} MB of client state read and {each:,.3g} MB written per round"
    if math.isfinite(factor := float(np.mean(factors))):
        yield from textwrap.wrap(_batching(factor), 80, subsequent_indent=" " * 12)
    if config.uses_slices:
        yield from textwrap.wrap(_slices(config, costs, cluster.ranks), 80, subsequent_indent=" " * 12)
    yield from _strong(config, arrays, costs, cluster)
    if config.trains_clients:
        yield from _weak(config, arrays, costs, cluster, own["server"].mean())


def measure_costs(comm: MPI.Comm, config: Config, cluster: Cluster) -> tuple[Config, Costs | None, Cluster]:
    """Return the resolved `config`, the means of what all ranks measured, and the cluster with their rates.

    Collective. The costs are None on ranks other than 0. cluster: as of `describe`.
    """
    threads = config.runtime.threads or max(1, cluster.cores // cluster.ranks_per_node)
    runtime = config.runtime.model_copy(update={"threads": threads})
    config = resolve(config.model_copy(update={"runtime": runtime}), comm)
    devices.set_up(comm, config.runtime)
    costs = calibrate(config)
    each, (neighbours, seconds) = (
        comm.gather(costs),
        measure.reduction_in_node(comm, costs.reduction_bytes // 8),
    )
    if each is None:
        return config, None, cluster
    measured = ("rate", "overhead", "batch", "test", "rest", "first", "load", "copy_rate")
    costs = replace(
        each[0], **{field: float(np.mean([getattr(one, field) for one in each])) for field in measured}
    )
    if neighbours > 1:  # derive the memory bandwidth from real messages
        here = Cluster(neighbours, 1, cluster.cores, threads, cluster.latency, cluster.bandwidth, 1.0)
        costs = replace(costs, copy_rate=exchange(0, costs.reduction_bytes, here) / seconds)
    return config, costs, replace(cluster, threads=threads, copy_rate=costs.copy_rate)


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


def _slices(config: Config, costs: Costs, ranks: int) -> str:
    """Describe the bytes of the cohort's models that a defence combines."""
    each = costs.broadcast_bytes * config.cohort / ranks
    held = 1 if ranks == 1 else 2
    return (
        f"  slices    {config.cohort} models: {each * (1 - 1 / ranks) / 1e6:,.3g} MB from every rank to the "
        f"others per round, {held * each / 1e6:,.3g} MB memory per rank, for "
        f"defence.name={config.defence.name}"
    )


def _batching(factor: float) -> str:
    """Describe what training clients together changes. factor: as of `batching_factor`."""
    return (
        f"  batching  training.clients_per_batch={BATCHED_CLIENTS}: that many clients take {factor:.2g} "
        "times as long as one by one (and the last digits of the result change)"
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
    # Recommended are numbers of ranks that the given nodes have cores for, and the one that was asked for.
    there = {
        one: taken
        for one, taken in seconds.items()
        if one.ranks == cluster.ranks or (one.nodes <= cluster.nodes and one.crowding <= 1)
    }
    best, anywhere = _smallest(there), _smallest(seconds)
    yield (
        f"best on {counted(cluster.nodes, 'node')}: {counted(best.ranks, 'rank')}; more gain less than "
        f"{100 * TOLERANCE - 100:.0f} %"
    )
    if seconds[anywhere] * TOLERANCE < seconds[best]:
        more = f"{counted(anywhere.ranks, 'rank')} on {counted(anywhere.nodes, 'node')}"
        yield f"with more nodes: {more}, {seconds[best] / seconds[anywhere]:.2g} times as fast"


def _smallest(seconds: dict[Cluster, float]) -> Cluster:
    """Return the smallest cluster whose time is within TOLERANCE of the best. seconds: by ascending size."""
    return next(one for one, taken in seconds.items() if taken <= TOLERANCE * min(seconds.values()))


def _weak(
    config: Config, arrays: dict[str, np.ndarray], costs: Costs, cluster: Cluster, busy: float
) -> Iterator[str]:
    """Yield the weak scaling table: a cohort that grows with the ranks, of clients sampled from the run's.

    busy: seconds per round that rank 0 spends as the server.
    """
    rng, sizes = np.random.default_rng(0), np.diff(arrays["pointers"])
    each = max(1, round(config.cohort / cluster.ranks))
    samples, every = len(arrays["test_labels"]), config.evaluation.every
    yield f"\nweak scaling: {counted(each, 'client')} per rank\n  ranks  nodes    s/round  efficiency (%)"
    first = None
    for one in _resized(cluster, cluster.ranks):
        units = rng.choice(sizes, (10, each * one.ranks)) * config.training.epochs
        seconds = (units + costs.overhead) * one.crowding / costs.rate
        longest = np.mean([loads(cohort, busy, one.ranks).max() for cohort in seconds])
        test, whole_test = (
            one.crowding
            * np.mean(
                [evaluation_seconds(config, samples, costs.test, ranks, round + 1) for round in range(every)]
            )
            for ranks in (one.ranks, 1)
        )
        # The server's work and the test set do not grow with the ranks, which share them. Compared is how
        # much work is done in the same time.
        work = (seconds.sum(1).mean() + busy + whole_test) / one.ranks
        taken = longest + exchange(costs.broadcast_bytes, costs.reduction_bytes, one) + test + costs.rest
        first = first or work / taken
        yield f"  {one.ranks:5d}  {one.nodes:5d}  {taken:9.3g}  {100 * work / taken / first:14.0f}"
