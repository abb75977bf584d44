"""Measure how runs scale: with ranks, against the prediction, and with clients and cohort (`scaling`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genfl_mpi.analysis import scaling_figure
from genfl_mpi.analysis.summary import last_evaluated
from genfl_mpi.config.differences import flatten
from genfl_mpi.config.settings import is_free
from genfl_mpi.mpi.round_time import Cluster, exchange, loads, measure_copy_rate
from genfl_mpi.results import reader
from genfl_mpi.util import plotting
from genfl_mpi.util.errors import UserError

# The runs of one study may differ in these settings, and in the number of ranks.
VARIED = {"clients", "cohort", "seed", "generation.seed"}
NETWORK = 2e-6, 12.5e9  # between nodes: latency, s, and bandwidth, B/s; the defaults of `plan`
PARTS = ("train", "server", "wait", "exchange", "test", "rest")


@dataclass(frozen=True)
class Measured:
    """Times of a run.

    cluster: where it ran. seconds: float64 (rounds,). parts: the mean rank's share of a round's seconds, in
    percent, by PARTS. accuracy: final one, in percent. clients, server: seconds of each client (rounds,
    cohort) and of the server (rounds,). fixed: seconds of a round's exchange and rest; test: of its
    evaluation. messages: bytes of broadcast and reduction.
    """

    path: str
    config: dict[str, Any]
    cluster: Cluster
    seconds: np.ndarray
    parts: dict[str, float]
    accuracy: float
    clients: np.ndarray
    server: np.ndarray
    fixed: float
    test: float
    messages: tuple[int, int]


def command(paths: Sequence[Path], out: str | Path) -> Iterator[str]:
    """Yield the lines of the `scaling` command, and save the figure to `out`. Raises UserError."""
    memory = measure_copy_rate()
    studies: dict[str, list[Measured]] = {}
    for path in paths:
        run = read(path, memory)
        key = str(
            {name: value for name, value in run.config.items() if not is_free(name) and name not in VARIED}
        )
        studies.setdefault(key, []).append(run)
    drawn: list[tuple[str, list[tuple[Any, ...]]]] = []
    for runs in studies.values():
        by_size: dict[tuple[int, int], list[Measured]] = {}

        for run in runs:
            by_size.setdefault((run.config["clients"], run.config["cohort"]), []).append(run)
        study = f"{runs[0].config['method']}, {runs[0].config['data.name']}, {runs[0].config['model.name']}"
        for (clients, cohort), of_size in by_size.items():
            if len({run.cluster.ranks for run in of_size}) > 1:
                rows = list(over_ranks(of_size))
                title = f"{study}: {clients} clients, cohort {cohort}"
                drawn.append((title, rows))
                yield from _ranks_table(title, rows)
        if len(by_size) > 1:
            rows = list(over_clients(by_size))
            drawn.append((study, rows))
            yield from _clients_table(study, rows)
    if not drawn:
        raise UserError(
            "nothing to compare; give results files that differ in the number of ranks, clients or cohort, "
            "and otherwise only in the seed"
        )
    plotting.save(scaling_figure.draw(drawn), out)
    yield f"figure in {out}"


def read(path: str | Path, memory: float) -> Measured:
    """Return the `Measured` of a results file. memory: copy bandwidth, B/s. Raises UserError."""
    with reader.open_results(path) as file, reader.report_damage(path):
        config, about = flatten(reader.read_config(file)), dict(file["environment"].attrs)
        if source := file["config"].attrs.get("copy_of"):
            raise UserError(f"{path}: its times are copied from {source}; give that file instead")
        rounds, clients, ranks = (
            reader.read_columns(file, table) for table in ("rounds", "clients", "ranks")
        )
        accuracy = 100 * last_evaluated(rounds["accuracy"])
    count = len(rounds["round"])
    if not count or len(ranks["rank"]) % count or len(set(np.bincount(ranks["round"])[1:])) > 1:
        raise UserError(
            f"{path}: has no rounds, or was continued on another number of ranks; give runs that were "
            "computed on one number"
        )
    size = len(ranks["rank"]) // count
    hosts = set(about["hosts"].split(", "))
    cluster = Cluster(size, len(hosts), int(about["cores"]), int(about["threads"]), *NETWORK, memory)
    seconds = rounds["round_seconds"]
    server = rounds["generate_seconds"] + rounds["augment_seconds"] + rounds["generate_ahead_seconds"]
    traffic, test = rounds["reduce_seconds"] + rounds["broadcast_seconds"], rounds["evaluate_seconds"]
    spent = [
        ranks["train_seconds"].reshape(count, size).mean(1),
        server / size,
        rounds["wait_seconds"],
        traffic,
        test,
    ]
    spent.append(seconds - sum(spent))
    parts = {part: 100 * one.sum() / seconds.sum() for part, one in zip(PARTS, spent)}
    return Measured(
        str(path),
        config,
        cluster,
        seconds,
        parts,
        accuracy,
        clients["seconds"].reshape(count, -1),
        server,
        (traffic + spent[-1]).mean(),
        test.mean(),
        (int(rounds["broadcast_bytes"][-1]), int(rounds["reduce_bytes"][-1])),
    )


def predicted(run: Measured, cluster: Cluster) -> float:
    """Predict the mean seconds per round on another cluster, from measured times of clients and server."""
    slower = cluster.crowding / run.cluster.crowding
    longest = [
        loads(clients * slower, busy * slower, cluster.ranks).max()
        for clients, busy in zip(run.clients, run.server)
    ]
    return (
        np.mean(longest)
        + run.test * slower * run.cluster.ranks / cluster.ranks
        + run.fixed
        + exchange(*run.messages, cluster)
        - exchange(*run.messages, run.cluster)
    )


def over_ranks(runs: Sequence[Measured]) -> Iterator[tuple[Any, ...]]:
    """Yield (ranks, mean seconds per round, those predicted from the fewest ranks, parts) by ranks."""
    base = min(runs, key=lambda run: run.cluster.ranks)
    for ranks in sorted({run.cluster.ranks for run in runs}):
        selected = [run for run in runs if run.cluster.ranks == ranks]
        yield (
            ranks,
            np.mean([run.seconds.mean() for run in selected]),
            predicted(base, selected[0].cluster),
            {part: np.mean([run.parts[part] for run in selected]) for part in PARTS},
        )


def over_clients(
    by_size: dict[tuple[int, int], list[Measured]],
) -> Iterator[tuple[Any, ...]]:
    """Yield (clients, cohort, ranks, mean seconds per round, mean final accuracy in %, runs) by size."""
    for (clients, cohort), runs in sorted(by_size.items()):
        for ranks in sorted({run.cluster.ranks for run in runs}):
            selected = [run for run in runs if run.cluster.ranks == ranks]
            yield (
                clients,
                cohort,
                ranks,
                np.mean([run.seconds.mean() for run in selected]),
                np.mean([run.accuracy for run in selected]),
                len(selected),
            )


def _ranks_table(title: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[str]:
    yield title
    yield "  ranks    s/round  predicted  speed-up  efficiency (%)"
    first_ranks, first, _, _ = rows[0]
    for ranks, seconds, expected, _ in rows:
        gain = first / seconds
        efficiency = 100 * gain * first_ranks / ranks
        yield f"  {ranks:5d}  {seconds:9.3g}  {expected:9.3g}  {gain:8.2f}  {efficiency:14.0f}"
    yield "  breakdown of the mean rank's time (%)"
    yield "  ranks" + "".join(f"{part:>10}" for part in PARTS)
    for ranks, _, _, parts in rows:
        yield f"  {ranks:5d}" + "".join(f"{parts[part]:10.1f}" for part in PARTS)
    yield ""


def _clients_table(title: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[str]:
    yield title
    yield "  clients  cohort  ranks    s/round  accuracy (%)  seeds"
    for clients, cohort, ranks, seconds, accuracy, seeds in rows:
        yield f"  {clients:7d}  {cohort:6d}  {ranks:5d}  {seconds:9.3g}  {accuracy:12.2f}  {seeds:5d}"
    yield ""
