"""Generate the images of a run in advance, on all ranks: the `generate` command."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

from genfl_mpi.data import datasets
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.generation.generator import Generator
from genfl_mpi.mpi import collectives, devices
from genfl_mpi.preparation.preview import planned_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI
    from genfl_mpi.mpi.signals import Signals


def generate(
    comm: MPI.Comm, configs: Iterable[Config], say: Callable[[str], object], signals: Signals
) -> int:
    """Generate the images of all `configs` that the bank lacks.

    Collective: each rank takes its share of the batches. Returns the exit status: 0, or that of the signal
    which interrupted it.
    """
    signals.doing = lambda: "generating images"
    for config in configs:
        config = resolve(config, comm)
        devices.set_up(comm, config.runtime, config.generation.device)
        generator = collectives.call_on_all(
            comm, lambda: Generator(config, datasets.describe(config.data).shape)
        )
        missing = collectives.from_rank0(
            comm,
            lambda: [
                batch for batches in planned_batches(config) for batch in batches if not generator.has(batch)
            ],
        )
        if comm.rank == 0 and (others := generator.bank.describe_foreign_images()):
            say(others)
        assigned = missing[comm.rank :: comm.size]
        if assigned:
            generator.load()
        collectives.wait_for_all(comm)
        start = time.perf_counter()
        with tqdm(
            total=sum(map(len, missing)), unit=" images", disable=comm.rank > 0 or not missing, mininterval=1
        ) as bar:

            def update_bar() -> None:
                """Count the images in the bank, which holds every rank's progress: no message is needed."""
                bar.update(sum(len(batch) for batch in missing if generator.has(batch)) - bar.n)

            def watch_others() -> bool:
                update_bar()
                time.sleep(0.2)
                return True

            for batch in assigned:
                if signals.exit_status():
                    break
                generator.images(batch)
                update_bar()
            collectives.wait_for_all(comm, watch_others if comm.rank == 0 else None)
            update_bar()
        if status := collectives.maximum(comm, signals.exit_status()):
            say(f"interrupted before all images were made; bank {config.generation.bank}")
            return status
        seconds = time.perf_counter() - start
        peak = collectives.maximum(comm, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        made = sum(map(len, missing))
        rate = f", {made / seconds:.2f} images/s" if made else ""
        say(
            f"made {made} images in {seconds:.1f} s{rate}; {comm.size} ranks x {config.generation.threads} "
            f"threads on {config.generation.device}, peak memory {peak / 1e9:.2f} GB per rank; "
            f"bank {config.generation.bank}"
        )
    return 0
