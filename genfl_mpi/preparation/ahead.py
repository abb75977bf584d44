"""What can be done before a run: fetch data and checkpoints, look at partition and prompts, fill the bank over all ranks."""

import resource
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation.policies import needed
from genfl_mpi.federation.server import planning_server
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.generation import model_folder
from genfl_mpi.generation.generator import Generator
from genfl_mpi.mpi import collectives, devices
from genfl_mpi.util import plotting


def prefetch(runs):
    """Download the data sets and checkpoints of `runs`; yields a line for each. For a login node with a network."""
    for data in {run.data for run in runs}:
        datasets.download(data)
        yield f"data set {data.name}: " + (
            f"in {data.root}" if datasets.describe(data).folder else "installed with the package"
        )
    for name in sorted({run.generation.checkpoint for run in runs if run.generates}):
        yield f"generator {name}: " + (
            "a function" if model_folder.is_function(name) else f"in {model_folder.fetch(name)}"
        )


def partition(comm, config):
    """How the clients' data differ: yields lines, and draws the client x class picture into output/partition.png."""
    arrays, about = load_and_divide(config), datasets.describe(config.data)
    server, histograms = planning_server(resolve(config, comm), arrays), arrays["label_histograms"]
    sizes, emd, labels = histograms.sum(1), earth_movers_distance(histograms), (histograms > 0).sum(1)
    yield (
        f"{config.data.name}: {sizes.sum()} samples at {config.clients} clients, {config.data.public_pool} in the public pool, "
        f"of {len(arrays['train_labels'])} for training"
    )
    yield f"samples a client: {sizes.min()} to {sizes.max()}, median {np.median(sizes):g}, mean {sizes.mean():.1f}"
    yield f"labels a client: {labels.min()} to {labels.max()} of {len(about.classes)}, mean {labels.mean():.1f}"
    yield f"EMD of a client: {emd.min():.2f} to {emd.max():.2f}, mean {emd.mean():.2f}, weighted by samples {emd @ sizes / sizes.sum():.2f}"
    if config.trains_clients and (
        "world" in needed(server.select_policy) or config.incentive.base is not None
    ):
        yield "the cohorts depend on the world: they are not told ahead"
    elif config.trains_clients:
        cohorts = [server.select_policy(replace(server.state, round=round)) for round in range(config.rounds)]
        pooled = np.array([histograms[cohort].sum(0) for cohort in cohorts])
        covered = (pooled > 0).sum(1)
        distance = np.abs(pooled / pooled.sum(1, keepdims=True) - histograms.sum(0) / sizes.sum()).sum(1)
        yield (
            f"the cohorts of {config.rounds} rounds: {covered.min()} to {covered.max()} labels of {len(about.classes)}, mean {covered.mean():.1f}; "
            f"EMD of a pooled cohort, mean {distance.mean():.2f}"
        )
    picture = Path(config.output) / "partition.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    plotting.save(plotting.partition(histograms, about.classes), picture)
    yield f"clients x classes: {picture}"


def prompts(comm, config):
    """What the generator would be asked: yields a line for each image of the first round, then the counts of all rounds."""
    plans = list(_batches(resolve(config, comm)))
    if not plans:
        yield f"generation.plan={config.generation.plan} depends on each round's cohort and cannot tell ahead"
        return
    names = datasets.describe(config.data).classes
    for batch in plans[0]:
        for label, seed, prompt in zip(batch.label, batch.seed, batch.prompt):
            yield f"{names[label]:<16} {prompt}    (seed {seed})"
    yield ""
    for round, batches in enumerate(plans, 1):
        counts = Counter(label for batch in batches for label in batch.label)
        if counts:
            yield f"round {round}: {counts.total()} images of {len(counts)} classes, {min(counts.values())} to {max(counts.values())} of each"


def generate(comm, configs, say, signals):
    """Fill the bank with the images of all `configs` that are not there yet; each rank makes its share of the batches. Returns 0,
    or the exit status with which `signals` ask to leave before."""
    signals.doing = lambda: "generating images"
    for config in configs:
        config = resolve(config, comm)
        devices.use(comm, config.runtime.threads, config.generation.device)
        generator = collectives.together(
            comm, lambda: Generator(config, datasets.describe(config.data).shape)
        )
        missing = collectives.from_rank0(
            comm,
            lambda: [
                batch for batches in _batches(config) for batch in batches if not generator.ready(batch)
            ],
        )
        if comm.rank == 0 and (others := generator.bank.made_by_others()):
            say(others)
        own = missing[comm.rank :: comm.size]
        if own:
            generator.load()
        collectives.arrive(comm)
        start = time.perf_counter()
        with tqdm(
            total=sum(map(len, missing)), unit=" images", disable=comm.rank > 0 or not missing, mininterval=1
        ) as bar:

            def look():
                """Every rank's progress is in the bank: no message is needed to show it."""
                bar.update(sum(len(batch) for batch in missing if generator.ready(batch)) - bar.n)
                return True

            for batch in own:
                if signals.asked():
                    break
                generator.images(batch)
                look()
            collectives.arrive(comm, lambda: look() and not time.sleep(0.2) if comm.rank == 0 else None)
            look()
        if status := collectives.largest(comm, signals.asked()):
            say(f"left before all images were made; bank {config.generation.bank}")
            return status
        seconds = time.perf_counter() - start
        peak = collectives.largest(comm, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        made = sum(map(len, missing))
        rate = f", {made / seconds:.2f} images/s" if made else ""
        say(
            f"made {made} images in {seconds:.1f} s{rate}; {comm.size} ranks x {config.generation.threads} threads on "
            f"{config.generation.device}, at most {peak / 1e9:.2f} GB a rank; bank {config.generation.bank}"
        )
    return 0


def _batches(config):
    """The batches of each round, as far as the plan can tell."""
    server = planning_server(config, load_and_divide(config))
    return server.images.batches_from(server.state, 0)
