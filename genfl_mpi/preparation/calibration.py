"""Measure the costs of a run on this machine: speeds, memory, bytes."""

from __future__ import annotations

import math
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.config import checks
from genfl_mpi.config.composition import Composition
from genfl_mpi.data import datasets
from genfl_mpi.federation.messages import NO_RANK
from genfl_mpi.federation.simulation import Simulation
from genfl_mpi.generation.generator import Generator
from genfl_mpi.mpi import collectives
from genfl_mpi.mpi.round_time import measure_copy_rate
from genfl_mpi.mpi.schedule import Pace
from genfl_mpi.preparation.preview import planned_batches
from genfl_mpi.privacy import masks
from genfl_mpi.privacy.protocol import Session
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.progress_bar import progress

if TYPE_CHECKING:
    from genfl_mpi.config.sections.personalisation import Personal
    from genfl_mpi.config.settings import Config
    from genfl_mpi.federation.records import Record

# Clients per round, and seconds of measurement, that suffice to estimate the cost of a client.
CALIBRATION_CLIENTS, CALIBRATION_SECONDS = 4, 8.0
BATCHED_CLIENTS, BATCHED_SECONDS = 20, 3.0  # of the comparison with clients trained together
MIN_STEPS = 2  # denoising steps of the first timed batch


@dataclass(frozen=True)
class Costs:
    """Measured costs of one rank on this machine.

    rate: training speed, samples/s; overhead: of a client, in samples; batch: s per batch of images; test: s
    to evaluate the test set; rest: s per round besides training, generation, evaluation and waiting; first: s
    by which a rank's first round is longer; load: s to load the generator; copy_rate: of memory, B/s;
    rank_bytes, server_bytes: memory of a rank, and of rank 0; shared_bytes: of the data set, once per node;
    checkpoint_bytes: of a checkpoint and the clients' states; state_bytes: of one client's state.
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
    state_bytes: int = 0


def calibrate(config: Config) -> Costs:
    """Measure the `Costs` of a resolved `config` on this rank alone.

    Trains a few clients for one epoch in some rounds, and generates some batches of images; the first of each
    warms up.
    """
    with tempfile.TemporaryDirectory() as folder:
        few = _short_run(config, max(CALIBRATION_CLIENTS, config.training.clients_per_batch))
        simulation = Simulation(few, comm=collectives.single(), folder=Path(folder))
        pace, first, rounds = _time_rounds(simulation, CALIBRATION_SECONDS)
        shared_bytes = sum(array.nbytes for array in simulation.data.values())
        broadcast_bytes, reduction_bytes = simulation.message_bytes
        checkpoint_bytes = simulation.checkpoint_bytes
        state_bytes = simulation.client_states.size if simulation.client_states else 0
        masking, unmasking = _mask_seconds(config, simulation.message_bytes[1] // 8)
        rank_bytes = _resident_bytes() - shared_bytes
        rests = [
            one["round_seconds"] - sum(one[f"{part}_seconds"] for part in ("train", "wait", "evaluate"))
            for one in rounds
        ]
        simulation.close()
        load, batch = _batch_seconds(config, folder) if config.generates else (0.0, 0.0)
    test = float(np.median([one["evaluate_seconds"] for one in rounds]))
    rest, rate = max(0.0, float(np.median(rests))) + unmasking, pace.rates()[0]
    pace.overhead += masking * rate
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
        state_bytes=state_bytes,
    )


def _mask_seconds(config: Config, size: int) -> tuple[float, float]:
    """Measure secure aggregation: the seconds of a client to mask, and of one rank to unmask the sum; else 0.

    size: integers in the message of the sum. Without clients that drop out.
    """
    if not (config.privacy.secure_aggregation and config.trains_clients):
        return 0.0, 0.0
    cohort, units, start = config.cohort, np.zeros(size, dtype=np.uint64), time.perf_counter()
    session = Session(config.seed, 0, np.arange(cohort), config.privacy.threshold, config.privacy.neighbours)
    terms = session.terms(0)
    masks.add_masks(units, terms)
    seconds = time.perf_counter() - start
    return seconds, cohort * seconds / len(terms)


def batching_factor(config: Config, costs: Costs) -> float:
    """Return the seconds of BATCHED_CLIENTS clients trained as one batch, over those of one after another.

    Measured on this rank alone; the latter are predicted from `costs`. NaN if the resolved `config` trains
    clients together already, or refuses it, or if they take more than BATCHED_SECONDS: steps of large
    networks gain nothing.
    """
    if config.training.clients_per_batch > 1 or config.clients < BATCHED_CLIENTS:
        return math.nan
    training = config.training.model_copy(update={"clients_per_batch": BATCHED_CLIENTS})
    together = config.model_copy(update={"training": training})
    few = _short_run(together, BATCHED_CLIENTS).model_copy(update={"cohort": BATCHED_CLIENTS})
    with tempfile.TemporaryDirectory() as folder:
        try:
            for check in checks.CHECKS:
                check(together)
            simulation = Simulation(few, comm=collectives.single(), folder=Path(folder))
        except (ValueError, UserError):  # settings, layers or an algorithm that cannot be batched
            return math.nan
        samples = np.diff(simulation.data["pointers"]).mean() + config.data.shared
        alone, batched = (samples + costs.overhead) / costs.rate, math.nan
        if BATCHED_CLIENTS * alone <= BATCHED_SECONDS:
            pace, _, _ = _time_rounds(simulation, BATCHED_SECONDS)
            batched = (samples + pace.overhead) / pace.rates()[0]
        simulation.close()
    return batched / alone


def _short_run(config: Config, cohort: int) -> Config:
    """Return a run whose rounds have one epoch, no generator, and at most `cohort` clients."""
    return config.model_copy(
        update={
            "method": "fedavg",
            "composition": Composition.model_validate({"images": "nowhere"}),
            "rounds": 20,
            "cohort": min(config.cohort, cohort),
            "training": config.training.model_copy(update={"epochs": 1}),
            "evaluation": config.evaluation.model_copy(update={"every": 1}),
            "personal": _shortened(config),
            "time": config.time.model_copy(update={"cloud_every": 1}),
        }
    )


def _time_rounds(simulation: Simulation, seconds: float) -> tuple[Pace, Record, list[dict[str, Any]]]:
    """Run rounds for some seconds, at least two.

    Returns the pace of the clients after the first round, which warms up; that round's `Record`; and the
    columns of the others.
    """
    pace, first, rounds = Pace(1), None, []
    start = time.perf_counter()
    for record in progress(simulation, "measure", "rounds", simulation.config.rounds):
        if first is None:
            first, start = record, time.perf_counter()
            continue
        samples, spent = _trained(record)
        pace.measure(samples, spent, np.zeros(len(samples), dtype=int))
        rounds.append(record.columns)
        if time.perf_counter() - start > seconds:
            break
    assert first is not None
    return pace, first, rounds


def _shortened(config: Config) -> Personal:
    """Return `personal` with as many passes for each one of `training` as in the run, and no evaluation."""
    epochs = max(1, round(config.personal.epochs / config.training.epochs))
    return config.personal.model_copy(update={"epochs": epochs, "every": 10**9})


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
    if steps == wanted:
        return load, long
    return load, long + max(0.0, long - short) * (wanted - steps) / (steps - MIN_STEPS)


def _resident_bytes() -> int:
    """Return the bytes of memory that this process has resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
