"""Predict the hours, core-hours and energy of a whole sweep: `plan --sweep`."""

from __future__ import annotations

import heapq
import textwrap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from genfl_mpi.config.differences import flat_settings
from genfl_mpi.data import datasets
from genfl_mpi.data.clients import divide
from genfl_mpi.mpi.groups import count_groups
from genfl_mpi.preparation.plan import measure_costs
from genfl_mpi.preparation.prediction import predict, total_seconds
from genfl_mpi.util.text import WIDTH, counted, duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from genfl_mpi.config.settings import Config
    from genfl_mpi.generation.bank import Batch
    from genfl_mpi.mpi.collectives import MPI
    from genfl_mpi.mpi.round_time import Cluster
    from genfl_mpi.preparation.calibration import Costs

# Settings and sections on which the measured costs of a run depend; all of its methods cost the same.
COSTLY = ("model", "data", "training", "algorithm", "transforms", "generation", "evaluation", "runtime")
CHEAP = {
    *(f"training.{name}" for name in ("epochs", "lr", "schedule", "decay", "period")),
    *(f"generation.{name}" for name in ("plan", "count", "per_round", "cap", "seed", "bank", "ranks")),
    "generation.min_fidelity",
    "evaluation.every",
    "evaluation.subset",
}


@dataclass(frozen=True)
class Bill:
    """What a sweep takes. hours: of the job; core_hours: of the cores that its ranks use; kilowatt_hours."""

    hours: float
    core_hours: float
    kilowatt_hours: float


def describe(comm: MPI.Comm, runs: Mapping[str, Config], cluster: Cluster, watts: float) -> Iterator[str]:
    """Yield the lines of `plan --sweep` on rank 0.

    Collective: all ranks of `comm` measure at the same time. cluster: as of `plan.describe`. watts: power of
    a node while it computes.
    """
    groups = count_groups(cluster.ranks, [config.busy_ranks for config in runs.values()])
    part = replace(cluster, ranks=cluster.ranks // groups, nodes=-(-cluster.nodes // groups))
    measured: dict[tuple[Any, ...], tuple[Config, Costs | None, Cluster]] = {}
    for config in sorted(runs.values(), key=lambda one: not one.generates):  # their costs include images
        if (key := cost_key(config)) not in measured:
            measured[key] = measure_costs(comm, config, part)
    if comm.rank:
        return
    seconds: dict[str, float] = {}
    made: dict[str, set[Batch]] = {}  # by bank
    data: dict[tuple[Any, ...], dict[str, np.ndarray]] = {}
    for name, config in runs.items():
        resolved, costs, part = measured[cost_key(config)]
        assert costs is not None
        config = config.model_copy(update={"runtime": resolved.runtime, "generation": _for(config, resolved)})
        key = datasets.cache_key(config.data)
        data = data if key in data else {key: datasets.load(config.data)}
        arrays = {**data[key], **divide(config, data[key])}
        in_bank = made.setdefault(config.generation.bank, set())
        rounds = predict(config, arrays, costs, part, in_bank)["round"]
        seconds[name] = total_seconds(rounds, config)
        yield f"{name}: {rounds.mean():.3g} s per round, {duration(seconds[name])}"
    total = bill(list(seconds.values()), groups, cluster, part.threads, watts)
    on = f"{counted(cluster.ranks, 'rank')} on {counted(cluster.nodes, 'node')}"
    several = f", in {groups} groups of {part.ranks}" if groups > 1 else ""
    yield ""
    yield from textwrap.wrap(f"{counted(len(runs), 'run')} on {on}{several}, without start and files:", WIDTH)
    yield f"  time      {duration(3600 * total.hours)}"
    yield f"  cores     {total.core_hours:,.3g} core-hours"
    yield f"  energy    {total.kilowatt_hours:,.3g} kWh at {watts:g} W per node"


def cost_key(config: Config) -> tuple[Any, ...]:
    """Return what two runs must have in common to have the same measured costs."""
    flat = flat_settings(config.model_dump(mode="json"))
    return tuple(
        (key, str(value))
        for key, value in flat.items()
        if key.partition(".")[0] in COSTLY and key not in CHEAP
    )


def bill(seconds: Sequence[float], groups: int, cluster: Cluster, threads: int, watts: float) -> Bill:
    """Return the `Bill` of runs that groups of ranks take one after another, in their order.

    seconds: of each run; threads: of a rank; watts: of a node.
    """
    ends = [0.0] * groups
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    hours = max(ends) / 3600
    cores = min(cluster.ranks * threads, cluster.nodes * cluster.cores)
    return Bill(hours, hours * cores, hours * cluster.nodes * watts / 1000)


def _for(config: Config, resolved: Config) -> Any:
    """Return config.generation of a run with what the machine decides, as in the measured run."""
    names = ("device", "dtype", "threads")
    return config.generation.model_copy(
        update={name: getattr(resolved.generation, name) for name in names}
        | {"seed": config.seed if config.generation.seed is None else config.generation.seed}
    )
