"""One run of a configuration: skipped if it is finished, continued if it was interrupted, written as it goes."""

import os
from dataclasses import dataclass, field

import numpy as np
import yaml

from genfl_mpi.config import flatten, to_yaml, validate
from genfl_mpi.data import datasets
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.errors import UserError
from genfl_mpi.generation.generator import Generator
from genfl_mpi.generation.prompts import load_prompts
from genfl_mpi.learning import models
from genfl_mpi.learning.aggregation import SERVER
from genfl_mpi.mpi import collectives
from genfl_mpi.results import checkpoint, environment, reader
from genfl_mpi.results.writer import Writer
from genfl_mpi.server import find_policies
from genfl_mpi.settings import is_free
from genfl_mpi.simulation import Simulation, resolve


@dataclass
class Earlier:
    """What an earlier start of the run left: rounds to keep, the weights after them, their rows."""

    finished: bool = False
    rounds: int = 0
    weights: np.ndarray | None = None
    state: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)


def prepare(comm, path, config):
    """`config` as the run in the results file `path` will use it, after all checks that need no data. Collective.

    Raises UserError on every rank if the run cannot be started or continued.
    """
    config = resolve(collectives.from_rank0(comm, lambda: _with_first_runtime(path, config)), comm)

    def check():
        if comm.rank == 0:
            split = config.partition
            datasets.check(config.data, 0 if split.replacement else config.clients * split.min_samples)
            find_policies(config)
            models.check(config.model)
            if config.generates:
                load_prompts(config.generation.prompts, datasets.describe(config.data).classes)
                Generator(config, datasets.describe(config.data).shape)
            if path.exists():
                with reader.open_results(path) as file:
                    _kept_rounds(path, file, config)

    collectives.together(comm, check)
    return config


def run(comm, path, config, given, say):
    """Bring the run of a prepared `config` in the results file `path` to its last round. Collective.

    given: the configuration as the user wrote it, for the record. say: prints a line, on rank 0.
    """
    earlier = collectives.together(comm, lambda: _earlier(path, config) if comm.rank == 0 else None)
    rounds, finished = comm.bcast(earlier and (earlier.rounds, earlier.finished))
    if finished and rounds == config.rounds:
        say(f"{path.stem}: finished before")
        return
    simulation = Simulation(config, comm=comm, folder=path.with_suffix(".variates"))
    if rounds:
        say(f"{path.stem}: continues after round {rounds}")
        generated = earlier.tables["generated"] if earlier else {"label": [], "image": [], "fidelity": []}
        simulation.restore(rounds, earlier and earlier.weights, earlier and earlier.state, generated["label"], generated["image"], generated["fidelity"])
    hosts = comm.gather(os.uname().nodename)
    if comm.rank == 0 and config.generates and (others := simulation.server.generator.bank.made_by_others()):
        say(f"{path.stem}: {others}")
    writer = collectives.together(comm, lambda: comm.rank == 0 and _open(path, simulation, given, hosts, earlier))
    for record in simulation:
        if comm.rank == 0:
            writer.append(record)
            if record.round % config.checkpoint_every == 0:
                checkpoint.save(path, record.round, simulation.down.weights, simulation.server.memory())
                if simulation.variates is not None:
                    simulation.variates.prune(simulation.server.trained)
            say(_line(path.stem, record, config.rounds))
    if comm.rank == 0:
        memory = simulation.server.memory()
        if memory:  # it stays, so that the run may be extended by more rounds
            checkpoint.save(path, simulation.round, simulation.down.weights, memory)
        writer.finish(simulation.down.weights)
        writer.close()
        if not memory:
            checkpoint.remove(path)
    simulation.close()


def _with_first_runtime(path, config):
    """`config` with the threads and the device of the run's first start, where it leaves them open."""
    if not path.exists():
        return config
    with reader.open_results(path) as file:
        first = validate(reader.config_of(file), str(path)).runtime
    now = config.runtime
    runtime = now.model_copy(update={"threads": now.threads or first.threads,
                                     "device": first.device if now.device == "auto" else now.device})
    return config.model_copy(update={"runtime": runtime})


def _earlier(path, config):
    if not path.exists():
        return Earlier()
    with reader.open_results(path) as file:
        rounds, weights, state, finished = _kept_rounds(path, file, config)
        goes_on = rounds and not (finished and rounds == config.rounds)
        return Earlier(finished, rounds, weights, state, reader.tables_until(file, rounds) if goes_on else {})


def _kept_rounds(path, file, config):
    """(rounds, weights, the server's state, finished) of an open results file that `config` continues. Raises UserError if it cannot."""
    stored, wanted = flatten(reader.config_of(file)), flatten(config.model_dump())
    differences = [f"{key} was {stored.get(key)} and is {wanted[key]}" for key in wanted
                   if not is_free(key) and stored.get(key) != wanted[key]]
    if differences:
        raise UserError(f"{path} holds a run of another configuration: {'; '.join(differences)}. "
                        "Set another `output`, or move that file away")
    rows, finished = len(file["rounds/round"]), reader.is_finished(file)
    rounds, weights, state = checkpoint.load(path)
    if finished and rounds != rows:
        rounds, weights, state = rows, file["weights"][:], {}
    if rounds and not state and config.algorithm.name in {*SERVER, "scaffold"}:
        raise UserError(f"{path}: what the server of {config.algorithm.name} remembers is missing, which was in {checkpoint.path_for(path).name}: "
                        "the run cannot be continued; set another `output`")
    if rounds > rows:
        raise UserError(f"{checkpoint.path_for(path)} is of another run than {path.name}: it has more rounds; move it away")
    if rounds > config.rounds:
        raise UserError(f"{path} already holds {rounds} rounds and rounds={config.rounds}; set another `output`")
    return rounds, weights, state, finished


def _open(path, simulation, given, hosts, earlier):
    config, data = simulation.config, simulation.data
    histograms = data["label_histograms"]
    classes = histograms.shape[1]
    texts = {"given": given, "resolved": to_yaml(config), "class_names": yaml.safe_dump(list(simulation.about.classes))}
    about = environment.describe(collectives.library(), hosts, config.runtime.threads, config.runtime.device)
    partition = {"pointers": data["pointers"], "label_histograms": histograms, "shared_labels": data["shared_labels"], "emd": earth_movers_distance(histograms)}
    shapes = {"accuracy_per_class": (classes,), "image": simulation.about.shape}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The checkpoint must fit the file from the first moment: this run's if it continues, none of an older run else.
        if earlier.rounds:
            checkpoint.save(path, earlier.rounds, earlier.weights, earlier.state)
        else:
            checkpoint.remove(path)
        return Writer(path, texts, about, partition, shapes, len(simulation.down.weights), earlier.tables)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or str(error).splitlines()[0]}; set `output` to a folder that can") from None


def _line(name, record, rounds):
    seconds = record.columns
    return (f"{name}  round {record.round:>{len(str(rounds))}}/{rounds}  accuracy {100 * record.accuracy:5.2f} %  "
            f"loss {record.loss:.3f}  {seconds['round_seconds']:.2f} s")
