"""One run of a configuration: skipped if it is finished, continued if it was interrupted, written as it goes."""

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import yaml

from genfl_mpi.config.loading import settings_of, to_yaml, validate, varied
from genfl_mpi.config.settings import is_free
from genfl_mpi.data import datasets
from genfl_mpi.data.clients import check_memory
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation import algorithms
from genfl_mpi.federation.configured import find_policies, remembering
from genfl_mpi.federation.simulation import Simulation, resolve
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.learning import models
from genfl_mpi.mpi import collectives, devices, launchers
from genfl_mpi.results import checkpoint, disk, environment, lock, progress, reader, sealed_files, status
from genfl_mpi.results.writer import Writer
from genfl_mpi.runs import inputs
from genfl_mpi.util.errors import UserError
from genfl_mpi.util.text import counted


@dataclass
class Earlier:
    """What an earlier start of the run left, or the run that it is a fork of: how many rounds to continue
    after, the weights after them, what the server remembered, the rows of the results, and of which file and
    round it is a fork; source, source_run: that file and the id of its run, as long as the fork has no file
    of its own; inputs: the digests of what it was made with; run: the id of the run, a new one if
    this is its first start.

    tables has all finished rounds: those after `rounds` have no weights any more, are computed again and
    compared."""

    finished: bool = False
    rounds: int = 0
    weights: np.ndarray | None = None
    state: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)
    origin: str = ""
    source: Path | None = None
    source_run: str = ""
    inputs: dict = field(default_factory=dict)
    run: str = field(default_factory=sealed_files.new_run)

    @property
    def stored(self):
        return len(self.tables["rounds"]["round"]) if self.tables else 0


def prepare(comm, path, config, fresh=False, fork=None):
    """`config` as the run in the results file `path` will use it, after all checks that need no data. Collective.

    fresh: the run starts over, whatever is there. fork: the (results file, round) from which it starts, or None.
    Raises UserError on every rank if the run cannot be started or continued.
    """
    exists = collectives.from_rank0(comm, lambda: os.path.exists(path) and not fresh)
    config = resolve(
        collectives.from_rank0(comm, lambda: _with_first_runtime(path, config) if exists else config), comm
    )

    def check():
        if comm.rank:
            return
        try:
            disk.check(path.parent)
            split = config.partition
            datasets.check(config.data, 0 if split.replacement else config.clients * split.min_samples)
            check_memory(config)
            algorithms.find(config)
            find_policies(config)
            about = datasets.describe(config.data)
            models.check(config.model, len(about.classes), about.shape)
            if config.generates:
                load_prompts(config.generation.prompts, about.classes)
                Generator(config, about.shape)
            lock.check_free(path)
            digests = inputs.digests(config)  # whatever cannot be read is refused now
            if exists:
                with reader.open_results(path) as file, reader.damage(path):
                    _kept_rounds(path, file, config, fork, lambda line: None)
            elif fork:
                with reader.open_results(fork[0]) as file, reader.damage(fork[0]):
                    inputs.check(fork[0], config, inputs.stored(file, config), digests)
        except OSError as error:  # a name that no file can have, say
            raise UserError(f"{str(error.filename)[:80]}: {error.strerror}") from None

    collectives.together(comm, check)
    return config


def run(comm, path, config, given, view, signals, fork=None, dataset=None, held=None):
    """Bring the run of a prepared `config` in the results file `path` to its last round. Collective.

    given: the configuration as the user wrote it, for the record. view: told on rank 0 what a person should see, a `view.Lines`.
    signals: `Signals` that may ask to leave before. fork: as in `prepare`. dataset: as a `Simulation` takes it.
    held: on rank 0 the run's `Lock`, if this process has it already; it is released in any case. Returns 0 if
    the run is finished, or else the exit status to leave with.
    """
    say = view.say
    earlier, note = collectives.together(comm, lambda: _begin(path, config, fork, comm, say, held))
    rounds, finished, name = comm.bcast(earlier and (earlier.rounds, earlier.finished, earlier.run))
    if finished and rounds == config.rounds:
        say(f"{path.stem}: finished before")
        return 0
    note = note or progress.Progress(path, comm.rank, comm.size)
    signals.doing = note.doing
    try:
        result = _compute(comm, path, config, given, view, signals, note, earlier, rounds, name, dataset)
    except BaseException as error:
        note.failed(error)
        raise
    if comm.rank:
        note.close()
    collectives.arrive(comm)
    if comm.rank == 0:
        note.close(ended=True)
    return result


def _compute(comm, path, config, given, view, signals, note, earlier, rounds, name, dataset):
    say, folder = view.say, path.with_suffix(".variates")
    simulation = Simulation(
        config, comm=comm, folder=folder, run=name, dataset=dataset, note=note, leaving=signals.asked
    )
    digests = collectives.together(comm, lambda: comm.rank == 0 and _inputs(path, simulation, earlier))
    if earlier and earlier.stored:
        say(f"{path.stem}: {_continues(earlier)}")
    if rounds:
        before = (None, None, None)
        if earlier:
            before = earlier.weights, earlier.state, reader.until(earlier.tables, rounds)
        simulation.restore(rounds, *before)
    hosts, cores = comm.gather(os.uname().nodename), devices.cores_of(devices.neighbours(comm)[0])
    if (
        comm.rank == 0
        and config.generates
        and (others := simulation.server.images.generator.bank.made_by_others())
    ):
        say(f"{path.stem}: {others}")

    def opened():
        if comm.rank == 0:
            note.lock.check()
            return _open(path, simulation, given, hosts, cores, earlier, digests)

    writer = collectives.together(comm, opened)
    if comm.rank == 0:
        known = status.begun(path, config, earlier.tables.get("rounds"))
        view.begin(known)
        note.finished([known.method, known.rounds], *known.done)
    saved, when = rounds, time.monotonic()
    for record in simulation:
        if comm.rank == 0:
            note("results")
            is_new = writer.append(record)
            note.lock.check()  # before a checkpoint, which may be in another start's way
            if _is_due(config.checkpoint, record.round, time.monotonic() - when):
                _save(path, name, simulation, writer, note)
                saved, when = record.round, time.monotonic()
            if is_new:
                view.add(record)
                note.finished(known.done[-1])
    done = simulation.round == config.rounds
    if comm.rank == 0:
        if saved < simulation.round and (simulation.left or remembering(config)):
            _save(path, name, simulation, writer, note)
        if done:
            note("finish")
            writer.finish(simulation.weights.numpy())
            if not remembering(
                config
            ):  # else the last one stays, so that the run may be extended by more rounds
                checkpoint.remove(path, config.checkpoint.keep)
        writer.close()
        if not done:
            say(
                f"{path.stem}: left after round {simulation.round} of {config.rounds}; the same command continues"
            )
    simulation.close()
    return 0 if done else simulation.left


def _is_due(settings, round, seconds):
    """Whether config.checkpoint wants a checkpoint after a round, the last being so many seconds old."""
    by_rounds = any(every and round % every == 0 for every in (settings.every_rounds, settings.keep))
    return by_rounds or (settings.every_seconds and seconds >= settings.every_seconds)


def _continues(earlier):
    """From where a run continues, and what it computes again, as text."""
    found, first, last = f"continues after round {earlier.rounds}", earlier.rounds + 1, earlier.stored
    if first > last:
        return found
    which = f"round {last}, which is" if first == last else f"rounds {first} to {last}, which are"
    found = found if earlier.rounds else "has no checkpoint yet"
    return f"{found}; computes again, and compares, {which} stored already"


def _save(path, run, simulation, writer, note):
    """Write a checkpoint of the last finished round. What it refers to is brought to the disk first: the
    results file, which must not have fewer rounds, and the clients' state files."""
    note("checkpoint")
    writer.flush()
    states = simulation.client_states
    if states:
        states.flush()
    keep = simulation.config.checkpoint.keep
    checkpoint.save(
        path, run, simulation.round, simulation.weights.numpy(), simulation.server.state_arrays(), keep
    )
    if states:
        states.prune(checkpoint.trained(path))


def _with_first_runtime(path, config):
    """`config` with the threads and the device of the run's first start, where it leaves them open."""
    with reader.open_results(path) as file:
        first = validate(reader.config_of(file), str(path)).runtime
    now = config.runtime
    runtime = now.model_copy(
        update={
            "threads": now.threads or first.threads,
            "device": first.device if now.device == "auto" else now.device,
        }
    )
    return config.model_copy(update={"runtime": runtime})


def _begin(path, config, fork, comm, say, held):
    """Lock the run, and print what became of the start before.

    Returns on rank 0 (`Earlier`, the `Progress` of this start, which owns the lock, or None if the run is
    finished), on other ranks (None, None). Raises UserError, with the lock released, if the run cannot go on.
    """
    if comm.rank:
        return None, None
    held, note = held or lock.Lock(path), None  # first, so that no other start changes what is read here
    try:
        held.check()  # --fresh took it before the runs whose turn came first
        earlier = _earlier(path, config, fork, say)
        if earlier.finished and earlier.rounds == config.rounds:
            progress.clear(path)
        else:
            became = "failed" if progress.has_failed(path) else "was cut off"
            for line in progress.lines(path):
                say(f"{path.stem}: the start before {became}: {line}")
            note = progress.Progress(path, 0, comm.size, held)
        return earlier, note
    finally:
        if note is None:
            held.release()


def _earlier(path, config, fork, say):
    """What `config` continues. Raises UserError if it cannot."""
    if not path.exists():
        return from_file(*fork, config, say) if fork else Earlier()
    with reader.open_results(path) as file, reader.damage(path):
        earlier = _kept_rounds(path, file, config, fork, say)
        rows = reader.rounds_of(file)
        goes_on = rows and not (earlier.finished and earlier.rounds == config.rounds)
        return replace(earlier, tables=reader.tables_until(file, rows)) if goes_on else earlier


def _kept_rounds(path, file, config, fork, say):
    """`Earlier`, without tables, from an open results file that `config` continues. Raises UserError if it cannot."""
    both = reader.config_of(file), config.model_dump(mode="json")
    stored, wanted = map(settings_of, both)
    differing = [
        key for key in {**stored, **wanted} if not is_free(key) and stored.get(key) != wanted.get(key)
    ]
    told = set(varied(both)) if differing else set()  # without what follows from the others
    differences = [
        f"{key} was {stored.get(key)} and is {wanted.get(key)}"
        for key in ([key for key in differing if key in told] or differing)
    ]
    rows, finished, run = reader.rounds_of(file), reader.is_finished(file), reader.run_of(file)
    if differences and not rows:
        return Earlier()
    if differences:
        raise UserError(
            f"{path} holds a run of another configuration: {'; '.join(differences)}. "
            "Set another `output`, or start over with --fresh, which moves the old files aside"
        )
    before = inputs.stored(file, config)
    if rows:
        inputs.check(path, config, before, inputs.digests(config))
    origin = file["config"].attrs.get("origin", "")
    if fork and origin != origin_of(*fork):
        raise UserError(f"{path} is there already, and no fork of {origin_of(*fork)}; set another `output`")
    rounds, weights, state = checkpoint.load(path, run, say)
    if finished and rounds != rows:
        rounds, weights, state = rows, reader.array_of(file, "weights"), {}
        if rows < config.rounds and (who := remembering(config)):
            raise UserError(
                f"{path}: what {who} remembers is missing, which was in {checkpoint.path_for(path).name}: "
                "the run cannot be continued; set another `output`, or start over with --fresh"
            )
    if rounds > rows:
        raise UserError(
            f"{checkpoint.path_for(path)}: a checkpoint of round {rounds}, but {path.name} has "
            f"{counted(rows, 'round')}, as if it were an older copy; move the checkpoint away"
        )
    if rows > config.rounds:
        raise UserError(
            f"{path} already holds {rows} rounds and rounds={config.rounds}; set another `output`"
        )
    return Earlier(finished, rounds, weights, state, origin=origin, inputs=before, run=run)


def from_file(path, round, config, say):
    """`Earlier` from a round of another run, in the results file `path`, for a fork with `config`.

    Raises UserError if there is no checkpoint of it.
    """
    with reader.open_results(path) as file, reader.damage(path):
        run = reader.run_of(file)
        found, weights, state = checkpoint.load(path, run, say, at=round)
        remembers = remembering(validate(reader.config_of(file), str(path)))
        if not found and not remembers and reader.is_finished(file) and round == reader.rounds_of(file):
            weights = reader.array_of(file, "weights")
        elif not found:
            there = ", ".join(map(str, checkpoint.rounds(path))) or "none"
            raise UserError(
                f"{path} has no checkpoint of round {round} (there are: {there}); "
                "a run with checkpoint.keep=1 keeps all"
            )
        return Earlier(
            False,
            round,
            weights,
            state,
            reader.tables_until(file, round),
            origin_of(path, round),
            path,
            run,
            inputs.stored(file, config),
        )


def origin_of(path, round):
    return f"{path} at round {round}"


def _inputs(path, simulation, earlier):
    """Hash all that the run reads, now that its data set is loaded.

    Raises UserError if the rounds to keep were computed from something else.
    """
    digests = inputs.digests(simulation.config, simulation.data)
    if earlier.stored:
        inputs.check(earlier.source or path, simulation.config, earlier.inputs, digests)
    return digests


def _open(path, simulation, given, hosts, cores, earlier, digests):
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
        "inputs": yaml.safe_dump(digests),
    }
    about = environment.describe(
        launchers.command(len(hosts), os.environ),
        collectives.library(),
        hosts,
        cores,
        config.runtime.threads,
        config.runtime.device,
    )
    partition = {
        "pointers": data["pointers"],
        "label_histograms": histograms,
        "shared_labels": data["shared_labels"],
        "emd": earth_movers_distance(histograms),
    }
    shapes = {"accuracy_per_class": (classes,), "bias_change": (classes,), "image": simulation.about.shape}
    # The checkpoint must fit the file from the first moment: this run's if it continues, none of an older run else.
    if earlier.source or not earlier.rounds:
        checkpoint.remove(path)
    if earlier.source and simulation.client_states:
        states = earlier.source.with_suffix(".variates")
        simulation.client_states.take(states, earlier.source_run, earlier.state["trained"])
        simulation.client_states.flush()
    if earlier.rounds:
        keep = config.checkpoint.keep
        checkpoint.save(path, earlier.run, earlier.rounds, earlier.weights, earlier.state, keep)
    return Writer(path, texts, about, partition, shapes, len(simulation.weights), earlier.tables)
