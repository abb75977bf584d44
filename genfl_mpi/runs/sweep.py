"""Compute the runs of a sweep, sequentially or several at once, each on a separate group of ranks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_once_per_node
from genfl_mpi.mpi import collectives, devices
from genfl_mpi.mpi.groups import Turns, count_groups, split
from genfl_mpi.runs import runner
from genfl_mpi.runs.display import Lines
from genfl_mpi.util.errors import UserError, annotate_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from genfl_mpi.config.sections.samples import Data
    from genfl_mpi.config.settings import Config
    from genfl_mpi.mpi.collectives import MPI
    from genfl_mpi.mpi.signals import Signals
    from genfl_mpi.results.lock import Lock


class DataSets:
    """Data sets in memory that the ranks of a node share, each read once for all runs of a sweep.

    comm: all ranks. Every method is collective over it.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm = comm
        self._loaded: dict[tuple, tuple[dict[str, np.ndarray], Any]] = {}

    def load(self, data: Data) -> dict[str, np.ndarray]:
        """Return the arrays of a data set, which is read if it is not in memory. data: config.data."""
        key = datasets.cache_key(data)
        if key not in self._loaded:
            self._loaded[key] = load_once_per_node(self.comm, data)
        return self._loaded[key][0]

    def close(self) -> None:
        """Release the memory. No array of it may be in use."""
        for _, window in self._loaded.values():
            window.Free()
        self._loaded.clear()


def groups(ranks: int, configs: Collection[Config]) -> int:
    """Return how many runs are computed at once."""
    return count_groups(ranks, [config.busy_ranks for config in configs])


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
    shared = DataSets(comm)
    if count == 1:
        for path, config in zip(paths, configs):
            others = [one for one in zip(paths, configs) if one[0] != path]
            status = runner.run(
                comm, path, config, given, view, signals, fork, shared.load, held.get(path), others
            )
            if status:
                break
        shared.close()
        return status
    for lock in held.values():  # each group takes the lock of a run when it starts the run
        lock.release()
    view.say(
        f"{len(configs)} runs on {count} groups of {comm.size // count} to {-(-comm.size // count)} ranks"
    )
    group = split(comm, count)
    devices.survey(comm, serves=group.rank == 0)
    view = Lines(say if group.rank == 0 else lambda line: None, view.level)
    for config in configs:
        shared.load(config.data)  # now, because later only a group's ranks would take part
    turns = Turns(comm, group, len(configs))
    for turn in turns:
        path, config = paths[turn], configs[turn]
        with annotate_errors(f"run {path.stem}"), _ending_job(comm, group, path.stem):
            others = [one for one in zip(paths, configs) if one[0] != path]
            status = runner.run(group, path, config, given, view, signals, fork, shared.load, others=others)
        if status:
            break
    turns.close(signals.exit_status)
    group.Free()
    shared.close()
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
