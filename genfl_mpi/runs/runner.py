"""Compute one run: skip it if it is finished, continue it if it was interrupted, and store every round."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from genfl_mpi.config.loading import to_yaml
from genfl_mpi.data import datasets, partition
from genfl_mpi.data.clients import check_memory
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation import algorithms, personal, refinements, transforms
from genfl_mpi.federation.policy_lookup import find_memory, find_policies
from genfl_mpi.federation.robust import attacks, combination
from genfl_mpi.federation.simulation import Simulation, resolve
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.learning import models
from genfl_mpi.mpi import collectives, devices, launchers
from genfl_mpi.results import checkpoint, disk, environment, lock, progress, reader, status
from genfl_mpi.results.client_state import ClientStates
from genfl_mpi.results.writer import Writer
from genfl_mpi.runs import inputs
from genfl_mpi.runs.earlier import (
    Earlier,
    Fork,
    Say,
    copy_equal_run,
    find_earlier,
    read_kept_rounds,
)
from genfl_mpi.runs.finished import with_first_runtime
from genfl_mpi.runs.loggers import Loggers, check_installed
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import enumerated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from genfl_mpi.config.sections.operation import Checkpoint
    from genfl_mpi.config.sections.samples import Data
    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI
    from genfl_mpi.mpi.signals import Signals
    from genfl_mpi.runs.display import Lines

    Load = Callable[[Data], dict[str, np.ndarray]]


def prepare(
    comm: MPI.Comm, path: Path, config: Config, fresh: bool = False, fork: Fork | None = None
) -> Config:
    """Return the resolved `config` of the run in the results file `path`, after all checks that need no data.

    Collective. fresh: ignore existing files. fork: the (results file, round) from which the run starts, or
    None. Raises UserError on every rank if the run cannot be started or continued.
    """
    exists = collectives.from_rank0(comm, lambda: os.path.exists(path) and not fresh)
    config = resolve(
        collectives.from_rank0(comm, lambda: _with_first_runtime(path, config) if exists else config), comm
    )

    def check() -> None:
        if comm.rank:
            return
        try:
            disk.check_writable(path.parent)
            check_installed(config.logging)
            split = config.partition
            datasets.check_available(
                config.data, 0 if split.replacement else config.clients * split.min_samples
            )
            check_memory(config)
            transforms.find(config)
            refinements.find(config)
            personal.check(config, algorithms.find(config))
            combination.check(config, algorithms.find(config), find_policies(config)["rho"])
            about = datasets.describe(config.data)
            attacks.check(config, about)
            partition.check(
                split, config.clients, len(about.classes), about.train_samples - config.data.public_pool
            )
            models.check(config.model, len(about.classes), about.shape)
            if config.calibration.every is not None:
                models.check_head(config.model, len(about.classes), about.shape, "calibration.every")
            if config.generates:
                load_prompts(config.generation.prompts, about.classes)
                Generator(config, about.shape)
            lock.check_free(path)
            digests = inputs.digests(config)  # refuses unreadable files now
            if exists:
                with reader.open_results(path) as file, reader.report_damage(path):
                    read_kept_rounds(path, file, config, fork, lambda line: None)
            elif fork:
                with reader.open_results(fork[0]) as file, reader.report_damage(fork[0]):
                    inputs.check(fork[0], config, inputs.stored(file, config), digests)
        except OSError as error:  # for example an invalid file name
            raise UserError(f"{str(error.filename)[:80]}: {error.strerror}") from None

    collectives.call_on_all(comm, check)
    return config


def run(
    comm: MPI.Comm,
    path: Path,
    config: Config,
    given: str,
    view: Lines,
    signals: Signals,
    fork: Fork | None = None,
    load: Load | None = None,
    held: lock.Lock | None = None,
    others: Sequence[tuple[Path, Config]] = (),
) -> int:
    """Compute the run of a prepared `config` in the results file `path` up to its last round. Collective.

    given: the user's configuration as text, which is stored. view: displays the progress on rank 0. signals:
    may request an early stop. fork: as in `prepare`. load: returns the arrays of config.data, if
    several runs share them. held: on rank 0, the run's
    lock if this process already holds it; it is always released. others: (results file, prepared `Config`) of
    runs whose rounds may be copied if they are equal. Returns 0 if the run is finished, otherwise
    the exit status of an interrupted run.
    """
    say = view.say
    earlier, note = collectives.call_on_all(comm, lambda: _begin(path, config, fork, comm, say, held))
    rounds, finished, name = comm.bcast(earlier and (earlier.rounds, earlier.finished, earlier.run))
    if finished and rounds == config.rounds:
        say(f"{path.stem}: already finished")
        view.skip()
        return 0
    earlier = earlier or Earlier(finished, rounds, run=name)  # on other ranks
    note = note or progress.Progress(path, comm.rank, comm.size)
    signals.doing = note.doing
    try:
        result = _compute(comm, path, config, given, view, signals, note, earlier, load, others)
    except BaseException as error:
        note.close_failed(error)
        raise
    if comm.rank:
        note.close()
    collectives.wait_for_all(comm)
    if comm.rank == 0:
        note.close(succeeded=True)
    return result


def _compute(
    comm: MPI.Comm,
    path: Path,
    config: Config,
    given: str,
    view: Lines,
    signals: Signals,
    note: progress.Progress,
    earlier: Earlier,
    load: Load | None,
    others: Sequence[tuple[Path, Config]],
) -> int:
    """Compute the rounds of a run after `earlier` and store them. Returns the exit status."""
    dataset = load(config.data) if load else None
    simulation = Simulation(
        config,
        comm=comm,
        folder=path.with_suffix(".variates"),
        run=earlier.run,
        dataset=dataset,
        note=note,
        leaving=signals.exit_status,
    )
    digests = collectives.call_on_all(comm, lambda: {} if comm.rank else _inputs(path, simulation, earlier))
    earlier = _restore(comm, path, simulation, earlier, digests, others, view.say)
    hosts: list[str] = comm.gather(os.uname().nodename) or []
    cores = devices.count_cores(devices.neighbours(comm)[0])
    held = note.lock  # on rank 0 alone, like the writer

    def open_file() -> Writer | None:
        if held is None:
            return None
        held.check()
        return _open(path, simulation, given, hosts, cores, earlier, digests)

    writer = collectives.call_on_all(comm, open_file)
    if writer and held:
        _store_rounds(path, simulation, writer, held, note, earlier, view)
    else:
        for _ in simulation:
            pass
    simulation.close()
    return 0 if simulation.round == config.rounds else simulation.left


def _restore(
    comm: MPI.Comm,
    path: Path,
    simulation: Simulation,
    earlier: Earlier,
    digests: dict[str, str],
    others: Sequence[tuple[Path, Config]],
    say: Say,
) -> Earlier:
    """Restore the simulation after the rounds of `earlier`, or of an equal run. Collective.

    Returns what it was restored from. Prints that, and warnings of other devices and foreign images.
    """
    copied, rounds = None, earlier.rounds
    if others and not rounds:
        copied = collectives.call_on_all(
            comm, lambda: None if comm.rank else copy_equal_run(simulation, digests, earlier, others)
        )
        rounds = comm.bcast(copied.rounds if copied else 0)
    if copied:
        earlier = copied
        say(f"{path.stem}: copies the rounds of {copied.copy_of}, an equal run in all that affects them")
    elif earlier.stored:
        say(f"{path.stem}: {_continuation(earlier)}")
    if rounds:
        simulation.restore(rounds, earlier.weights, earlier.state, reader.rows_until(earlier.tables, rounds))
    config = simulation.config
    warn_of_devices = partial(_compare_devices, config, simulation.device_models, earlier.tables)
    if warning := collectives.from_rank0(comm, warn_of_devices):
        say(f"{path.stem}: warning: {warning}")
    server = simulation.server if config.generates else None
    if server and (foreign := server.images.generator.bank.describe_foreign_images()):
        say(f"{path.stem}: {foreign}")
    return earlier


def _store_rounds(
    path: Path,
    simulation: Simulation,
    writer: Writer,
    held: lock.Lock,
    note: progress.Progress,
    earlier: Earlier,
    view: Lines,
) -> None:
    """Compute the rounds on rank 0, and store, display and log each. Finishes and closes the results file."""
    config, name, say = simulation.config, earlier.run, view.say
    known = status.start_status(path, config, earlier.tables.get("rounds"))
    view.begin(known)
    note.note_rounds([known.method, known.rounds], *known.done)
    saved, when = simulation.round, time.monotonic()
    loggers = None
    if config.logging:
        loggers = Loggers(path, config, name, simulation.round, simulation.about.classes, say)
    for record in simulation:
        note("results")
        is_new = writer.append(record)
        held.check()  # before a checkpoint, which could interfere with another job's
        if _is_due(config.checkpoint, _keep(simulation), record.round, time.monotonic() - when):
            _save(path, name, simulation, writer, note)
            saved, when = record.round, time.monotonic()
        if is_new:
            view.add(record)
            if loggers:
                loggers.log(record)
            note.note_rounds(known.done[-1])
    if loggers:
        loggers.close()
    if saved < simulation.round and (simulation.left or find_memory(config)):
        _save(path, name, simulation, writer, note)
    if done := simulation.round == config.rounds:
        note("finish")
        writer.finish(simulation.weights.numpy())
        # Policies with memory need the last checkpoint if the run is extended by more rounds.
        if not find_memory(config):
            checkpoint.remove(path, _keep(simulation))
    writer.close()
    if not done:
        say(
            f"{path.stem}: stopped after round {simulation.round} of {config.rounds}; "
            "the same command continues the run"
        )
    elif view.level != "quiet":
        _say_forks(path, config, say)


def _is_due(settings: Checkpoint, keep: int | None, round: int, seconds: float) -> bool:
    """Return whether a checkpoint is due after a round. seconds: age of the last checkpoint."""
    by_rounds = any(every and round % every == 0 for every in (settings.every_rounds, keep))
    return by_rounds or bool(settings.every_seconds and seconds >= settings.every_seconds)


def _keep(simulation: Simulation) -> int | None:
    """Return k if the checkpoint of every k-th round is kept for `fork`, or None. On rank 0."""
    settings = simulation.config.checkpoint
    if settings.keep != "auto":
        return settings.keep
    rounds, limit = simulation.config.rounds, 1e6 * settings.max_megabytes
    return checkpoint.keep_interval(rounds, settings.every_rounds, simulation.checkpoint_bytes, limit)


def _say_forks(path: Path, config: Config, say: Say) -> None:
    """Print the rounds from which `fork` can continue a finished run."""
    if rounds := [round for round in checkpoint.list_rounds(path) if round < config.rounds]:
        say(
            f"{path.stem}: can be forked at {enumerated('round', rounds)}: "
            f"fork {path} --at {rounds[len(rounds) // 2]} key=value"
        )


def _compare_devices(config: Config, now: str, tables: dict[str, Any]) -> str:
    """Return a warning if the run began on other models of devices, or its ranks have several; else "".

    now: of `devices.describe_models`; tables: the stored rounds. Raises UserError with runtime.same_device.
    """
    known = [name.decode() for name in tables.get("rounds", {}).get("device", ()) if name]
    if known and known[0] != now:
        problem = f"the run began on {known[0]} and continues on {now}, whose results may have other bits"
    elif "+" in now:
        problem = f"the ranks compute on {now}: which of them trains a client may change bits"
    else:
        return ""
    if config.runtime.same_device:
        raise UserError(f"{problem}; use the same devices, or set runtime.same_device=false")
    return f"{problem}; `/rounds/device` records it for each round"


def _continuation(earlier: Earlier) -> str:
    """Describe after which round a run continues, and which rounds it recomputes."""
    first, last = earlier.rounds + 1, earlier.stored
    start = f"continues after round {earlier.rounds}"
    if first > last:
        return start
    which, them = (f"round {last}", "it") if first == last else (f"rounds {first} to {last}", "them")
    start = start if earlier.rounds else "has no checkpoint yet"
    return f"{start}; recomputes {which} and compares {them} with the stored results"


def _save(path: Path, run: str, simulation: Simulation, writer: Writer, note: progress.Progress) -> None:
    """Write a checkpoint of the last finished round, on rank 0.

    The files to which it refers are flushed first: the results file, which must not have fewer rounds, and
    the clients' state files.
    """
    server, states = simulation.server, simulation.client_states
    if server is None:
        return
    note("checkpoint")
    writer.flush()
    before = server.locations  # the ranks have the plan of the next round, which refers to these
    if states:
        if states.is_scattered(before):
            server.locations = states.compact(simulation.round, server.trained, before)
        states.flush()
    keep = _keep(simulation)
    checkpoint.save(path, run, simulation.round, simulation.weights.numpy(), server.state_arrays(), keep)
    if states:
        states.prune(simulation.round, [*checkpoint.read_locations(path), before])


def _copy_states(simulation: Simulation, earlier: Earlier) -> None:
    """Copy the clients' states of the run of which this one is a fork."""
    states, server = simulation.client_states, simulation.server
    if not (earlier.source and states and server):
        return
    others = ClientStates(earlier.source.with_suffix(".variates"), states.shapes, earlier.source_run)
    trained, locations = (earlier.state[name] for name in ("trained", "locations"))
    server.locations = states.compact(earlier.rounds, trained, locations, others)
    earlier.state["locations"] = server.locations
    states.flush()


def _with_first_runtime(path: Path, config: Config) -> Config:
    """Return `config` with threads and device of the first start of the run in a results file."""
    with reader.open_results(path) as file:
        return with_first_runtime(config, reader.read_config(file), path)


def _begin(
    path: Path, config: Config, fork: Fork | None, comm: MPI.Comm, say: Say, held: lock.Lock | None
) -> tuple[Earlier | None, progress.Progress | None]:
    """Lock the run, and print how the previous start ended.

    Returns on rank 0 (earlier, progress); the `Progress` of this start owns the lock, and is None if the run
    is finished. Returns (None, None) on other ranks. Raises UserError, with the lock released, if the run
    cannot continue.
    """
    if comm.rank:
        return None, None
    held, note = held or lock.Lock(path), None  # first, so that no other job changes the files read here
    try:
        held.check()  # --fresh took it long ago, before the preceding runs
        earlier = find_earlier(path, config, fork, say)
        if earlier.finished and earlier.rounds == config.rounds:
            progress.clear(path)
        else:
            outcome = "failed" if progress.has_failed(path) else "was interrupted"
            for line in progress.describe_ranks(path):
                say(f"{path.stem}: the previous start {outcome}: {line}")
            note = progress.Progress(path, 0, comm.size, held)
        return earlier, note
    finally:
        if note is None:
            held.release()


def _inputs(path: Path, simulation: Simulation, earlier: Earlier) -> dict[str, str]:
    """Hash all inputs of the run, including the loaded data set.

    Raises UserError if the stored rounds were computed from other inputs.
    """
    digests = inputs.digests(simulation.config, simulation.data, simulation.model.frozen_digest())
    if earlier.stored:
        inputs.check(earlier.source or path, simulation.config, earlier.inputs, digests)
    return digests


def _open(
    path: Path,
    simulation: Simulation,
    given: str,
    hosts: Sequence[str],
    cores: int,
    earlier: Earlier,
    digests: Mapping[str, str],
) -> Writer:
    """Open the results file for writing, with a checkpoint that matches it."""
    config, data = simulation.config, simulation.data
    histograms = data["label_histograms"]
    classes = histograms.shape[1]
    names = yaml.safe_dump(list(simulation.about.classes))
    texts = {
        "run": earlier.run,
        "given": given,
        "resolved": to_yaml(config),
        "class_names": names,
        "origin": earlier.origin,
        **({"copy_of": earlier.copy_of} if earlier.copy_of else {}),
        **({"alphabet": simulation.about.alphabet} if simulation.about.alphabet else {}),
        "inputs": yaml.safe_dump(dict(digests)),
    }
    about = environment.describe(
        launchers.command(len(hosts), os.environ),
        collectives.library(),
        hosts,
        cores,
        config.runtime.threads or 1,
        config.runtime.device,
    )
    partition = {
        "pointers": data["pointers"],
        "label_histograms": histograms,
        "shared_labels": data["shared_labels"],
        "emd": earth_movers_distance(histograms),
    }
    shapes = {"accuracy_per_class": (classes,), "bias_change": (classes,), "image": simulation.about.shape}
    # The checkpoint must match the file at all times: it is this run's, never one of an older run.
    if earlier.source or not earlier.rounds:
        checkpoint.remove(path)
    if earlier.source and simulation.client_states and "trained" in earlier.state:
        _copy_states(simulation, earlier)
    if earlier.rounds and earlier.weights is not None:
        keep = _keep(simulation)
        checkpoint.save(path, earlier.run, earlier.rounds, earlier.weights, earlier.state, keep)
    return Writer(path, texts, about, partition, shapes, len(simulation.weights), earlier.tables)
