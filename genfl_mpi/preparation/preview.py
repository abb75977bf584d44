"""Show what a run will use before it starts: the `partition` and `prompts` commands."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_and_divide
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation.policies import needs_of
from genfl_mpi.federation.server import planning_server
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.util import plotting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from genfl_mpi.config.settings import Config
    from genfl_mpi.generation.bank import Batch
    from genfl_mpi.mpi.collectives import MPI


def partition(comm: MPI.Comm, config: Config) -> Iterator[str]:
    """Yield lines on how the clients' data differ, and draw clients x classes in output/partition.png."""
    arrays, about = load_and_divide(config), datasets.describe(config.data)
    server, histograms = planning_server(resolve(config, comm), arrays), arrays["label_histograms"]
    sizes, emd, labels = histograms.sum(1), earth_movers_distance(histograms), (histograms > 0).sum(1)
    yield (
        f"{config.data.name}: {sizes.sum()} samples at {config.clients} clients, "
        f"{config.data.public_pool} in the public pool, of {len(arrays['train_labels'])} for training"
    )
    yield (
        f"samples per client: {sizes.min()} to {sizes.max()}, median {np.median(sizes):g}, "
        f"mean {sizes.mean():.1f}"
    )
    yield (
        f"labels per client: {labels.min()} to {labels.max()} of {len(about.classes)}, "
        f"mean {labels.mean():.1f}"
    )
    yield (
        f"EMD per client: {emd.min():.2f} to {emd.max():.2f}, mean {emd.mean():.2f}, "
        f"weighted by samples {emd @ sizes / sizes.sum():.2f}"
    )
    depends_on_world = "world" in needs_of(server.select_policy) or config.incentive.base is not None
    if config.trains_clients and depends_on_world:
        yield "the cohorts depend on the world, so they are not known in advance"
    elif config.trains_clients:
        cohorts = [server.select_policy(replace(server.state, round=round)) for round in range(config.rounds)]
        pooled = np.array([histograms[cohort].sum(0) for cohort in cohorts])
        covered = (pooled > 0).sum(1)
        distance = np.abs(pooled / pooled.sum(1, keepdims=True) - histograms.sum(0) / sizes.sum()).sum(1)
        yield (
            f"the cohorts of {config.rounds} rounds: {covered.min()} to {covered.max()} labels of "
            f"{len(about.classes)}, mean {covered.mean():.1f}; EMD of a pooled cohort, "
            f"mean {distance.mean():.2f}"
        )
    picture = Path(config.output) / "partition.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    plotting.save(plotting.partition(histograms, about.classes), picture)
    yield f"clients x classes: {picture}"


def prompts(comm: MPI.Comm, config: Config) -> Iterator[str]:
    """List the prompts of the first round, one line per image, then the number of images in each round."""
    plans = list(planned_batches(resolve(config, comm)))
    if not plans:
        yield (
            f"generation.plan={config.generation.plan} depends on each round's cohort, "
            "so its prompts are not known in advance"
        )
        return
    names = datasets.describe(config.data).classes
    for batch in plans[0]:
        for label, seed, prompt in zip(batch.label, batch.seed, batch.prompt):
            yield f"{names[label]:<16} {prompt}    (seed {seed})"
    yield ""
    for round, batches in enumerate(plans, 1):
        counts = Counter(label for batch in batches for label in batch.label)
        if counts:
            yield (
                f"round {round}: {counts.total()} images of {len(counts)} classes, "
                f"{min(counts.values())} to {max(counts.values())} of each"
            )


def planned_batches(config: Config) -> Iterator[list[Batch]]:
    """Yield the batches of each round, up to the first whose plan depends on its cohort. config: resolved."""
    server = planning_server(config, load_and_divide(config))
    return server.images.batches_from(server.state, 0)
