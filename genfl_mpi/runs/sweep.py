"""The runs of a sweep: one after another, or several at once, each on a group of the ranks."""

from contextlib import contextmanager

from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_once_a_node
from genfl_mpi.mpi import collectives, devices, failing
from genfl_mpi.mpi.groups import Turns, split
from genfl_mpi.runs import runner
from genfl_mpi.runs.display import Lines
from genfl_mpi.util.errors import UserError


def busy_ranks(config):
    """How many ranks a run keeps busy: one for each client of the cohort and one for the server, or runtime.ranks_per_run."""
    cohort = config.cohort if config.trains_clients else 0
    return config.runtime.ranks_per_run or max(1, cohort + config.augments)


def groups(ranks, configs):
    """How many runs are computed at once: as many as leave every run the ranks that it keeps busy, and one at least."""
    return max(1, min(len(configs), ranks // max(map(busy_ranks, configs))))


def run(comm, paths, configs, given, view, say, signals, fork=None, held=None):
    """Bring the runs of prepared `configs`, in the results files `paths`, to their last rounds. Collective.

    say: prints a line, on every rank; held: on rank 0, locks of runs that it holds already, {path: `Lock`};
    the rest as for `runner.run`. Returns 0, or the exit status to leave with.
    """
    count, status, held = groups(comm.size, configs), 0, held or {}
    if count == 1:
        runs = zip(paths, configs, map(held.get, paths))
        return next(
            filter(
                None,
                (
                    runner.run(comm, path, config, given, view, signals, fork, held=lock)
                    for path, config, lock in runs
                ),
            ),
            0,
        )
    for lock in held.values():  # other processes take them, each when its group comes to the run
        lock.release()
    view.say(
        f"{len(configs)} runs on {count} groups of {comm.size // count} to {-(-comm.size // count)} ranks"
    )
    group = split(comm, count)
    devices.survey(comm, serves=group.rank == 0)
    view = Lines(say if group.rank == 0 else lambda line: None, view.level)
    data = {datasets.source(config.data): config.data for config in configs}  # of all runs, once a node
    shared = {source: load_once_a_node(comm, one) for source, one in data.items()}
    turns = Turns(comm, group, len(configs))
    for turn in turns:
        path, config = paths[turn], configs[turn]
        dataset, _ = shared[datasets.source(config.data)]
        with failing.named(f"run {path.stem}"), _alone(comm, group, path.stem):
            status = runner.run(group, path, config, given, view, signals, fork, dataset)
        if status:
            break
    turns.close(signals.asked)
    group.Free()
    for _, window in shared.values():
        window.Free()
    return collectives.largest(comm, status)


@contextmanager
def _alone(comm, group, name):
    """What a group alone finds wrong ends the job: its first rank says it, of the run `name`, and the others wait for the end."""
    try:
        yield
    except UserError as error:
        if error.on_all_ranks and group.rank:
            collectives.arrive(comm)
        error.args, error.on_all_ranks = (f"{name}: {error}",), False
        raise
