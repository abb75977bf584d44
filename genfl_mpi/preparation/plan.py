"""What a run will take on so many ranks, from a few clients and images computed here: the `plan` command."""

import resource
import tempfile
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

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
from genfl_mpi.mpi.round_time import Cluster, copying, exchange, loads
from genfl_mpi.mpi.schedule import Pace
from genfl_mpi.preparation import gpu_memory
from genfl_mpi.results import environment
from genfl_mpi.util.text import counted

CLIENTS, SECONDS = 4, 8.0  # clients of a round, and time, that are enough to learn a client's cost
FEWEST_STEPS = 2  # denoising steps of which the time is taken first
MOST = 300  # rounds looked at; later ones are like the second half of these
ENOUGH = 1.05  # times the least seconds: more ranks are not worth while
PARTS = ("longest rank", "server", "waiting", "exchange", "testing", "rest")


@dataclass(frozen=True)
class Costs:
    """Of one rank here. rate: samples/s; overhead: of a client, in samples; batch: s of a batch of images; test: s of the test
    set; rest: s of a round beside training, generating, testing and waiting; first: s by which a rank's first round is longer;
    load: s until the generator can begin; copying: B/s in memory; down, up: bytes of the messages; own, server: bytes of memory
    of a rank, and of rank 0; shared: of the data, once a node."""

    rate: float
    overhead: float
    batch: float
    test: float
    rest: float
    first: float
    load: float
    copying: float
    down: int
    up: int
    own: int
    server: int
    shared: int


def calibrate(config):
    """The `Costs` of a resolved `config`, of this rank alone: some rounds of a few clients with one epoch, and some batches of
    images, of which the first warms up."""
    with tempfile.TemporaryDirectory() as folder:
        training = config.training.model_copy(update={"epochs": 1})
        few = config.model_copy(
            update={
                "method": "fedavg",
                "composition": Composition(images="nowhere"),
                "rounds": 20,
                "cohort": min(config.cohort, max(CLIENTS, training.clients_per_batch)),
                "training": training,
            }
        )
        simulation = Simulation(few, comm=collectives.alone(), folder=Path(folder))
        pace, rounds, start = Pace(1), [], None
        for record in simulation:
            if start is not None:  # the first round warms up
                samples, seconds = _trained(record)
                pace.measure(samples, seconds, np.zeros(len(samples), dtype=int))
                rounds.append(record.columns)
            else:
                first, start = record, time.perf_counter()
            if rounds and time.perf_counter() - start > SECONDS:
                break
        shared = sum(array.nbytes for array in simulation.data.values())
        messages = simulation.message_bytes
        own = _resident() - shared
        rest = [
            one["round_seconds"] - sum(one[f"{part}_seconds"] for part in ("train", "wait", "evaluate"))
            for one in rounds
        ]
        simulation.close()
        load, batch = _batch_seconds(config, folder) if config.generates else (0.0, 0.0)
    test, rest, rate = (
        np.median([one["evaluate_seconds"] for one in rounds]),
        max(0.0, np.median(rest)),
        pace.rates()[0],
    )
    usual = (_trained(first)[0] + pace.overhead).sum() / rate + test + rest
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Costs(
        rate,
        pace.overhead,
        batch,
        test,
        rest,
        max(0.0, first.columns["round_seconds"] - usual),
        load,
        copying(),
        *messages,
        own,
        max(own, peak - shared),
        shared,
    )


def _trained(record):
    """(samples, seconds) of the clients of a round that were trained; in a world that acts some are not."""
    trained = record.clients["rank"] != NO_RANK
    return record.clients["samples"][trained], record.clients["seconds"][trained]


def _batch_seconds(config, folder):
    """Seconds until the generator is loaded, and of a batch of images: with the configured steps if that takes no more than
    SECONDS, or else by the straight line through two smaller numbers of them."""

    def batch_of(steps, number):
        generation = config.generation.model_copy(
            update={"steps": steps, "bank": f"{folder}/{number}", "seed": number}
        )
        few = config.model_copy(update={"generation": generation})
        server = planning_server(few, load_and_divide(few))
        batch = next(batch for batches in server.images.batches_from(server.state, 0) for batch in batches)
        generator, start = Generator(few, datasets.describe(few.data).shape), time.perf_counter()
        generator.load()
        loaded = time.perf_counter()
        generator.images(batch)
        return loaded - start, time.perf_counter() - loaded

    load, _ = batch_of(FEWEST_STEPS, 0)  # warms up
    (_, short), wanted = batch_of(FEWEST_STEPS, 1), config.generation.steps
    steps = min(wanted, max(2 * FEWEST_STEPS, int(SECONDS * FEWEST_STEPS / short)))
    _, long = batch_of(steps, 2)
    return load, long + max(0.0, long - short) * (wanted - steps) / (steps - FEWEST_STEPS)


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def predict(config, arrays, costs, cluster):
    """The PARTS of each round in seconds, {part: float64 (rounds,)}, and "round": their sum, waiting and server aside.

    The server of the run itself chooses the cohorts, asks for the images and schedules, round by round; nothing is computed.
    arrays: of `load_and_divide`. At most MOST rounds.
    """
    if (
        config.generation.plan == "cohort_deficit"
    ):  # its images are known too late, and are as many as of this one
        config = config.model_copy(
            update={"generation": config.generation.model_copy(update={"plan": "deficit"})}
        )
    made, in_bank = set(), None
    server = planning_server(config, arrays, cluster.ranks, lambda batch: batch in made or in_bank(batch))
    images, message, wanted = (
        server.images,
        Broadcast(0, config.cohort if config.trains_clients else 0, {}),
        [],
    )
    if config.generates:
        in_bank = images.generator.ready
        wanted = list(images.batches_from(server.state, 0))
    later = iter([batch for batches in wanted for batch in batches])
    slow, found = cluster.crowding, {part: [] for part in PARTS}

    def train(units):
        return (units + costs.overhead) * slow / costs.rate

    def make(batches):
        missing = [batch for batch in batches if not images.ready(batch)]
        load = costs.load * slow if missing and not made else 0.0
        made.update(missing)
        return load, len(missing) * costs.batch * slow, len(missing)

    def make_now(batches):
        load, seconds, missing = make(batches)
        images.speed.measure(missing, seconds)
        images.is_loaded |= missing > 0
        for batch in batches:
            images.add(batch.label, np.empty((len(batch), 0)), np.full(len(batch), np.nan))
        return load + seconds

    for round in range(min(config.rounds, MOST)):
        server.select(round, message)
        batches, early = wanted[round] if round < len(wanted) else [], 0.0
        if config.generates and not config.augments:  # all wait for the images, on which the clients train
            early = make_now(batches)
            if config.sends:
                server.send(message.plan)
        if server.world and config.trains_clients:
            server.world.note(server.status)
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
        others = server.seconds_of_others  # as long as a batch fits, a server that waits works ahead
        while made and ends[0] + costs.batch * slow <= others and (batch := next(later, None)):
            ends[0] += sum(make([batch])[:2])
        server.pace.measure(units, seconds, trained["rank"])
        chunks = -(-len(arrays["test_labels"]) // config.evaluation.batch_size)
        parts = (
            early + ends.max(),
            early + busy,
            (ends.max() - ends).mean(),
            exchange(costs.down, costs.up, cluster),
            costs.test * slow * -(-chunks // cluster.ranks) / chunks,
            costs.rest,
        )
        for part, value in zip(PARTS, parts):
            found[part].append(value)
    found = {part: np.array(values) for part, values in found.items()}
    return found | {"round": sum(found[part] for part in ("longest rank", "exchange", "testing", "rest"))}


def total(rounds, config):
    """Seconds of all rounds, from those that were looked at."""
    return rounds.sum() + (config.rounds - len(rounds)) * rounds[len(rounds) // 2 :].mean()


def command(comm, config, cluster, name, gpus=None):
    """Lines of the `plan` command. Collective: every rank of `comm` measures, at the same time. cluster: a `Cluster`, of
    which the run's threads and the copying are not known yet. gpus: of a node, by default this one's if the run is on them."""
    asked = config
    config = config.model_copy(
        update={
            "runtime": config.runtime.model_copy(
                update={"threads": config.runtime.threads or max(1, cluster.cores // cluster.ranks_a_node)}
            )
        }
    )
    config = resolve(config, comm)
    devices.use(comm, config.runtime.threads, config.runtime.device)
    costs = calibrate(config)
    each, (neighbours, seconds) = comm.gather(costs), measure.reduction_in_node(comm, costs.up // 8)
    if comm.rank:
        return
    measured = ("rate", "overhead", "batch", "test", "rest", "first", "load", "copying")
    costs = replace(
        each[0], **{field: float(np.mean([getattr(one, field) for one in each])) for field in measured}
    )
    if neighbours > 1:  # then what messages in memory really take is known
        here = Cluster(
            neighbours, 1, cluster.cores, config.runtime.threads, cluster.latency, cluster.bandwidth, 1.0
        )
        costs = replace(costs, copying=exchange(0, costs.up, here) / seconds)
    cluster = replace(cluster, threads=config.runtime.threads, copying=costs.copying)
    arrays = load_and_divide(config)
    yield f"{name}: {config.rounds} rounds, {config.clients} clients, a cohort of {config.cohort}"
    yield ""
    yield from textwrap.wrap(_measured(config, comm.size, costs), 80, subsequent_indent="  ")
    yield from textwrap.wrap(_assumed(cluster), 80, subsequent_indent="  ")
    own = predict(config, arrays, costs, cluster)
    yield ""
    yield f"{counted(cluster.ranks, 'rank')} on {counted(cluster.nodes, 'node')}"
    yield f"  seconds   {own['round'].mean():.3g} a round, {total(own['round'], config):,.4g} in all, start and files aside"
    parts = ", ".join(f"{part} {own[part].mean():.3g}" for part in PARTS)
    yield from textwrap.wrap(parts, 80, initial_indent=" " * 12, subsequent_indent=" " * 12)
    yield (
        f"  memory    {costs.own / 1e6:,.0f} MB a rank, {costs.server / 1e6:,.0f} MB rank 0, and {costs.shared / 1e6:,.0f} MB a node "
        "for the data"
    )
    if gpus or config.runtime.device == "cuda":
        for line in gpu_memory.lines(asked, arrays, cluster.ranks_a_node, gpus or torch.cuda.device_count()):
            yield from textwrap.wrap(line, 80, initial_indent="  ", subsequent_indent=" " * 12)
    yield f"  bytes     {costs.down / 1e6:,.3g} MB to every rank and {costs.up / 1e6:,.3g} MB from every rank in a round"
    yield from _strong(config, arrays, costs, cluster)
    if config.trains_clients:
        yield from _weak(config, arrays, costs, cluster, own["server"].mean())


def _measured(config, ranks, costs):
    threads = counted(config.runtime.threads, "thread")
    images = (
        f"{config.generation.batch_size} images in {costs.batch:.2f} s, after {costs.load:.2f} s until the generator is loaded; "
        if config.generates
        else ""
    )
    return (
        f"measured by {counted(ranks, 'rank')} {'at once, ' if ranks > 1 else ''}of {threads}, on {config.runtime.device}, "
        f"{environment.processor()}: {costs.rate:,.0f} samples/s in training, and {1000 * costs.overhead / costs.rate:.1f} ms a "
        f"client beside; {images}testing {costs.test:.2f} s; the rest of a round {costs.rest:.3f} s, and {costs.first:.2f} s more "
        f"in the first one; "
        f"messages in memory {costs.copying / 1e9:.1f} GB/s"
    )


def _assumed(cluster):
    crowded = (
        f"; {cluster.ranks_a_node} ranks of {counted(cluster.threads, 'thread')} share {counted(cluster.cores, 'core')}, so that "
        f"all takes {cluster.crowding:.3g} times as long"
        if cluster.crowding > 1
        else ""
    )
    return (
        f"assumed: nodes like this one, of {counted(cluster.cores, 'core')}; between nodes {1e6 * cluster.latency:g} us and "
        f"{8 * cluster.bandwidth / 1e9:g} Gbit/s; LogGP for long messages: broadcast by scatter and allgather, reduction by "
        f"reduce-scatter and gather{crowded}"
    )


def _others(cluster, most):
    """The cluster with 1, 2, 4 and so on ranks up to `most`, and with so many as it has, as full nodes."""
    for ranks in sorted({*(2**i for i in range(most.bit_length())), cluster.ranks}):
        yield replace(cluster, ranks=ranks, nodes=-(-ranks // cluster.ranks_a_node))


def _strong(config, arrays, costs, cluster):
    seconds = {
        one: total(predict(config, arrays, costs, one)["round"], config) / config.rounds
        for one in _others(cluster, max(cluster.ranks, 2 * config.cohort))
    }
    first = next(iter(seconds.values()))
    yield "\nstrong scaling: the same run\n  ranks  nodes  s a round  speed-up  efficiency (%)"
    for one, taken in seconds.items():
        yield f"  {one.ranks:5d}  {one.nodes:5d}  {taken:9.3g}  {first / taken:8.2f}  {100 * first / taken / one.ranks:14.0f}"
    best = next(one for one, taken in seconds.items() if taken <= ENOUGH * min(seconds.values()))
    yield f"best of these: {best.ranks} ranks; more gain less than {100 * ENOUGH - 100:.0f} %"


def _weak(config, arrays, costs, cluster, busy):
    """A cohort that grows with the ranks, of clients like these."""
    rng, sizes, each = (
        np.random.default_rng(0),
        np.diff(arrays["pointers"]),
        max(1, round(config.cohort / cluster.ranks)),
    )
    chunks = -(-len(arrays["test_labels"]) // config.evaluation.batch_size)
    yield f"\nweak scaling: {each} clients a rank\n  ranks  nodes  s a round  efficiency (%)"
    first = None
    for one in _others(cluster, cluster.ranks):
        units = rng.choice(sizes, (10, each * one.ranks)) * config.training.epochs
        seconds = (units + costs.overhead) * one.crowding / costs.rate
        longest = np.mean([loads(cohort, busy, one.ranks).max() for cohort in seconds])
        test = costs.test * one.crowding * -(-chunks // one.ranks) / chunks
        taken = longest + exchange(costs.down, costs.up, one) + test + costs.rest
        first = first or taken
        yield f"  {one.ranks:5d}  {one.nodes:5d}  {taken:9.3g}  {100 * first / taken:14.0f}"
