"""Compute the runs of a sweep, sequentially or several at once, each on a separate group of ranks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_once_per_node
from genfl_mpi.mpi import collectives, devices, failing
from genfl_mpi.mpi.groups import Turns, split
from genfl_mpi.runs import runner
from genfl_mpi.runs.display import Lines
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI
    from genfl_mpi.mpi.signals import Signals
    from genfl_mpi.results.lock import Lock


def busy_ranks(config: Config) -> int:
    """Return how many ranks a run keeps busy: one per client of the cohort and one for the server.

    runtime.ranks_per_run replaces this number.
    """
    cohort = config.cohort if config.trains_clients else 0
    return config.runtime.ranks_per_run or max(1, cohort + config.has_server_images)


def groups(ranks: int, configs: Collection[Config]) -> int:
    """Return how many runs are computed at once, at least one: each gets the ranks that it keeps busy."""
    return max(1, min(len(configs), ranks // max(map(busy_ranks, configs))))


def run(
    comm: MPI.Comm,
    paths: Sequence[Path],
    configs: Sequence[Config],
    given: str,
    view: Lines,
    say: Callable[[str], None],
    signals: Signals,
    fork: tuple[Path, int] | None = None,
    held: dict[Path, Lock] | None = None,
) -> int:
    """Compute the runs of prepared `configs` in the results files `paths` to the last round. Collective.

    say: prints a line, on every rank. held: on rank 0, locks of runs that this process already holds,
    {path: lock}. The other parameters are those of `runner.run`. Returns 0, or the exit status of an
    interrupted run.
    """
    count, status, held = groups(comm.size, configs), 0, held or {}
    if count == 1:
        for path, config in zip(paths, configs):
            others = [one for one in zip(paths, configs) if one[0] != path]
            status = runner.run(
                comm, path, config, given, view, signals, fork, held=held.get(path), others=others
            )
            if status:
                break
        return status
    for lock in held.values():  # each group takes the lock of a run when it starts the run
        lock.release()
    view.say(
        f"{len(configs)} runs on {count} groups of {comm.size // count} to {-(-comm.size // count)} ranks"
    )
    group = split(comm, count)
    devices.survey(comm, serves=group.rank == 0)
    view = Lines(say if group.rank == 0 else lambda line: None, view.level)
    data = {datasets.cache_key(config.data): config.data for config in configs}
    shared = {source: load_once_per_node(comm, one) for source, one in data.items()}
    turns = Turns(comm, group, len(configs))
    for turn in turns:
        path, config = paths[turn], configs[turn]
        dataset, _ = shared[datasets.cache_key(config.data)]
        with failing.annotate_errors(f"run {path.stem}"), _ending_job(comm, group, path.stem):
            others = [one for one in zip(paths, configs) if one[0] != path]
            status = runner.run(group, path, config, given, view, signals, fork, dataset, others=others)
        if status:
            break
    turns.close(signals.exit_status)
    group.Free()
    for _, window in shared.values():
        window.Free()
    return collectives.maximum(comm, status)


@contextmanager
def _ending_job(comm: MPI.Comm, group: MPI.Comm, name: str) -> Iterator[None]:
    """End the whole job on a UserError of one group.

    The group's first rank reports it with the name of the run; its other ranks wait for the end.
    """
    try:
        yield
    except UserError as error:
        if error.on_all_ranks and group.rank:
            collectives.wait_for_all(comm)
        error.args, error.on_all_ranks = (f"{name}: {error}",), False
        raise
