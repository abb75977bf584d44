"""What can be done before a run: fetch data and checkpoints, look at the prompts, fill the bank over all ranks."""

import resource
import time
from collections import Counter

from tqdm import tqdm

from genfl_mpi.data import datasets
from genfl_mpi.generation import checkpoint
from genfl_mpi.generation.generator import Generator
from genfl_mpi.mpi import collectives, devices
from genfl_mpi.server import Server
from genfl_mpi.simulation import load_and_divide, resolve


def prefetch(runs):
    """Download the data sets and checkpoints of `runs`; yields a line for each. For a login node with a network."""
    for data in {run.data for run in runs}:
        datasets.download(data)
        yield f"data set {data.name}: " + (f"in {data.root}" if datasets.DESCRIPTIONS[data.name].folder else "installed with the package")
    for name in sorted({run.generation.checkpoint for run in runs if run.generates}):
        yield f"checkpoint {name}: in {checkpoint.fetch(name)}"


def prompts(comm, config):
    """What the generator would be asked: yields a line for each image of the first round, then the counts of all rounds."""
    plans = list(_server(resolve(config, comm)).batches_from(0))
    if not plans:
        yield f"generation.plan={config.generation.plan} depends on each round's cohort and cannot tell ahead"
        return
    names = datasets.DESCRIPTIONS[config.data.name].classes
    for batch in plans[0]:
        for label, seed, prompt in zip(batch.label, batch.seed, batch.prompt):
            yield f"{names[label]:<16} {prompt}    (seed {seed})"
    yield ""
    for round, batches in enumerate(plans, 1):
        counts = Counter(label for batch in batches for label in batch.label)
        if counts:
            yield f"round {round}: {counts.total()} images of {len(counts)} classes, {min(counts.values())} to {max(counts.values())} of each"


def generate(comm, configs, say):
    """Fill the bank with the images of all `configs` that are not there yet; each rank makes its share of the batches."""
    for config in configs:
        config = resolve(config, comm)
        devices.use(comm, config.runtime.threads, config.generation.device)
        generator = collectives.together(comm, lambda: Generator(config, datasets.DESCRIPTIONS[config.data.name].shape))
        missing = collectives.from_rank0(comm, lambda: [
            batch for batches in _server(config).batches_from(0) for batch in batches if not generator.ready(batch)])
        if comm.rank == 0 and (others := generator.bank.made_by_others()):
            say(others)
        own = missing[comm.rank :: comm.size]
        if own:
            generator.load()
        collectives.arrive(comm)
        start = time.perf_counter()
        with tqdm(total=sum(map(len, missing)), unit=" images", disable=comm.rank > 0 or not missing, mininterval=1) as bar:

            def look():
                """Every rank's progress is in the bank: no message is needed to show it."""
                bar.update(sum(len(batch) for batch in missing if generator.ready(batch)) - bar.n)
                return True

            for batch in own:
                generator.images(batch)
                look()
            collectives.arrive(comm, lambda: look() and not time.sleep(0.2) if comm.rank == 0 else None)
            look()
        seconds = time.perf_counter() - start
        peak = collectives.largest(comm, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        made = sum(map(len, missing))
        rate = f", {made / seconds:.2f} images/s" if made else ""
        say(f"made {made} images in {seconds:.1f} s{rate}; {comm.size} ranks x {config.generation.threads} threads on "
            f"{config.generation.device}, at most {peak / 1e9:.2f} GB a rank; bank {config.generation.bank}")


def _server(config):
    """The server's knowledge before a run: what the clients share, and the plan."""
    arrays = load_and_divide(config)
    return Server(config, datasets.DESCRIPTIONS[config.data.name], arrays, None, {})
