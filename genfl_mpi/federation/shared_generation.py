"""Generate a round's missing images on several ranks: a batch depends on its key alone, not on its rank."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from genfl_mpi.generation import model_folder
from genfl_mpi.generation.bank import Batch, batches_of_round
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.mpi import collectives, devices, measure
from genfl_mpi.mpi.schedule import assign

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from genfl_mpi.config.settings import Config
    from genfl_mpi.data.descriptions import Description
    from genfl_mpi.federation.server_images import ServerImages
    from genfl_mpi.mpi.collectives import MPI
    from genfl_mpi.mpi.schedule import Speed

IN_BANK = -1  # the rank of a batch that need not be generated
MEMORY_FACTOR = 2  # bytes of memory per byte of a generator's files: float32 of half precision, activations


class Division(NamedTuple):
    """Which rank generates which batch of a round.

    counts, already: int (servers, classes), images to generate of each class, and generated before, for each
    server with images of its own: one, or the edge servers of tiers. ranks: int (batches,), or IN_BANK.
    seconds: predicted, infinite before the first measurement.
    """

    counts: np.ndarray
    already: np.ndarray
    ranks: np.ndarray
    seconds: float


class Report(NamedTuple):
    """What the ranks did in a shared generation.

    batches, seconds, loading: float64 (ranks,), batches that each generated, the seconds for them, and those
    to load the generator; on rank 0. left: whether a rank was asked to leave; on rank 0. own_seconds: this
    rank's work.
    """

    batches: np.ndarray
    seconds: np.ndarray
    loading: np.ndarray
    left: bool
    own_seconds: float


class Generators:
    """The generation rates of the ranks, from which rank 0 divides the batches of a round.

    able: bool (ranks,), the ranks that may generate; rank 0 always may. speeds: a `Speed` in batches a second
    for each rank. loading: of a generator, in loads a second. is_loaded: bool (ranks,).
    """

    def __init__(self, able: np.ndarray, speeds: list[Speed], loading: Speed) -> None:
        self.able, self.speeds, self.loading = able, speeds, loading
        self.is_loaded = np.zeros(len(able), dtype=bool)

    def divide(
        self, counts: np.ndarray, already: np.ndarray, missing: np.ndarray, rounds_left: int
    ) -> Division | None:
        """Divide the missing batches, each to the rank that finishes it first; None if rank 0 takes all.

        counts, already: as of `Division`; missing: bool (batches,); rounds_left: over which the seconds to
        load a generator are spread.
        """
        if self.able.sum() < 2 or missing.sum() < 2:
            return None
        known = [speed.rate for speed in self.speeds if speed.rate]
        rates = np.array([speed.rate or np.mean(known or [1.0]) for speed in self.speeds])
        load = 1 / self.loading.rate if self.loading.rate else 0.0
        starts = np.where(self.is_loaded, 0.0, load / rounds_left)
        starts[~self.able] = np.inf
        ranks = np.full(len(missing), IN_BANK)
        ranks[missing] = assigned = assign(np.ones(missing.sum()), rates, starts)
        if not assigned.any():
            return None
        taken = np.bincount(assigned, minlength=len(rates))
        ends = starts[taken > 0] + taken[taken > 0] / rates[taken > 0]
        return Division(counts, already, ranks, float(ends.max()) if known else np.inf)

    def measure(self, report: Report) -> None:
        """Update the rates by those of a shared generation."""
        for speed, batches, seconds in zip(self.speeds, report.batches, report.seconds):
            speed.measure(batches, seconds)
        for loading in report.loading:
            self.loading.measure(1, loading)
        self.is_loaded |= report.batches > 0

    def rates(self) -> list[Speed]:
        """Return the speeds of all ranks, and that of loading, for `Pace.state` and `Pace.restore`."""
        return [*self.speeds, self.loading]


class SharedGeneration:
    """A rank's part in the generation of a round's images. Collective; the bank's folder must be shared.

    seeds: of the images of each server, as in `Division`. note: called as note("generate", done=images,
    of=images) before each batch. leaving: returns an exit status if the ranks were asked to leave, else 0.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        config: Config,
        about: Description,
        seeds: Sequence[int],
        note: Callable[..., None],
        leaving: Callable[[], int],
    ) -> None:
        self.comm, self.config, self.about, self.note, self.leaving = comm, config, about, note, leaving
        self.seeds = seeds
        self._generator: Generator | None = None
        self._is_loaded = False

    def make(self, batches: int, images: ServerImages | None) -> Report:
        """Generate this rank's share of a round's `batches`, and wait for the other ranks. Collective.

        images: on rank 0, with their `division`; else None. Raises UserError on every rank if one of them
        cannot generate.
        """
        size = len(self.seeds) * len(self.about.classes)
        plan = np.zeros(2 * size + batches, dtype=np.int64)
        if images is not None and images.division:
            plan[:] = np.concatenate([part.ravel() for part in images.division[:3]])
            self._generator, self._is_loaded = images.generator, images.is_loaded
        collectives.broadcast(self.comm, plan)
        counts, already = plan[: 2 * size].reshape(2, len(self.seeds), -1)
        share = self._find_share(counts, already, plan[2 * size :])
        rows = np.zeros((self.comm.size, 4))
        made = collectives.call_on_all(self.comm, lambda: self._make_share(share))
        rows[self.comm.rank] = *made, bool(self.leaving())
        collectives.wait_for_all(self.comm)
        collectives.reduce_sum(self.comm, rows.view(np.int64))  # of each row all ranks but one have zeros
        return Report(rows[:, 0], rows[:, 1], rows[:, 2], bool(rows[:, 3].any()), sum(made[1:]))

    def _find_share(self, counts: np.ndarray, already: np.ndarray, ranks: np.ndarray) -> list[Batch]:
        """Return the batches that are assigned to this rank. The arrays are those of a `Division`."""
        if not (ranks == self.comm.rank).any():
            return []
        settings = self.config.generation
        prompts = load_prompts(settings.prompts, self.about.classes)
        batches = [
            batch
            for wanted, before, seed in zip(counts, already, self.seeds)
            for batch in batches_of_round(wanted, before, prompts, seed, settings.batch_size)
        ]
        return [batch for batch, rank in zip(batches, ranks) if rank == self.comm.rank]

    def _make_share(self, share: list[Batch]) -> tuple[int, float, float]:
        """Generate batches, and return their number, the seconds for them, and those to load the generator.

        Stops early if the ranks are asked to leave.
        """
        begun, loading, done, images = time.perf_counter(), 0.0, 0, sum(map(len, share))
        finished = 0
        for batch in share:
            if self.leaving():
                break
            self.note("generate", done=done, of=images)
            done += len(batch)
            if self._generator is None:
                self._generator = Generator(self.config, self.about.shape)
            if self._generator.has(batch):  # another job has just made it
                continue
            if not self._is_loaded:
                start = time.perf_counter()
                self._generator.load()
                self._is_loaded, loading = True, time.perf_counter() - start
            self._generator.images(batch)
            finished += 1
        seconds = time.perf_counter() - begun - loading if share else 0.0
        return finished, seconds, loading


def find_able_ranks(comm: MPI.Comm, config: Config) -> np.ndarray:
    """Return which ranks may generate, bool (ranks,), by config.generation.ranks. Collective.

    Of the ranks of a node as many as have cores for the generator's threads, or one for each GPU, and room
    for its weights.
    """
    places, index = devices.neighbours(comm)
    limit = _limit(config, comm.size)
    if on_gpu := config.generation.device == "cuda":
        has_device = devices.is_first_on_gpu(places, index)
    else:
        has_device = index < devices.count_cores(places) // (config.generation.threads or 1)

    def is_able() -> bool:
        if comm.rank == 0 or comm.rank >= limit or not has_device:
            return comm.rank == 0
        sharers = devices.count_gpu_sharers(places, index) if on_gpu else 1
        return _has_room(config, sharers, len(places))

    return np.array(comm.allgather(collectives.call_on_all(comm, is_able)))


def able_ranks_of(config: Config, ranks: int, ranks_per_node: int, cores: int) -> np.ndarray:
    """Predict `find_able_ranks` on another machine, whose ranks have room: bool (ranks,)."""
    numbers = np.arange(ranks)
    has_cores = numbers % ranks_per_node < cores // (config.generation.threads or 1)
    return (numbers < _limit(config, ranks)) & has_cores | (numbers == 0)


def _limit(config: Config, ranks: int) -> int:
    """Return how many of the first ranks config.generation.ranks lets generate."""
    wanted = config.generation.ranks
    if not config.generates or wanted == "server":
        return 1
    return ranks if wanted == "all" else wanted


def _has_room(config: Config, gpu_sharers: int, node_ranks: int) -> bool:
    """Return whether the generator's weights fit into this rank's part of the memory of its device."""
    settings = config.generation
    if model_folder.is_function(settings.checkpoint):
        return True
    folder = model_folder.locate(settings.checkpoint)
    needed = MEMORY_FACTOR * sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if settings.device == "cuda":
        return needed <= torch.cuda.mem_get_info()[0] / gpu_sharers
    return needed <= measure.available_memory() / node_ranks
