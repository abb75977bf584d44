"""Show what a run will use before it starts: the `partition` and `prompts` commands."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.data import datasets
from genfl_mpi.data.clients import load_labels_and_divide
from genfl_mpi.data.labels import earth_movers_distance
from genfl_mpi.federation.policies import needs_of
from genfl_mpi.federation.server import planning_server
from genfl_mpi.federation.simulation import resolve
from genfl_mpi.util.text import WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from genfl_mpi.config.settings import Config
    from genfl_mpi.generation.bank import Batch
    from genfl_mpi.mpi.collectives import MPI

MAX_EXAMPLES = 2  # prompts shown of each class


def partition(comm: MPI.Comm, config: Config) -> Iterator[str]:
    """Yield lines on how the clients' data differ, and draw clients x classes in output/partition.png."""
    from genfl_mpi.util import plotting  # imported here: it takes seconds that `prompts` does not need

    arrays, about = load_labels_and_divide(config), datasets.describe(config.data)
    # Clients and cohorts do not depend on images, for which there may be no generator yet.
    composition = config.composition.model_copy(update={"images": "nowhere"})
    server = planning_server(resolve(config.model_copy(update={"composition": composition}), comm), arrays)
    histograms = arrays["label_histograms"]
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


def prompts(comm: MPI.Comm, config: Config, each: bool = False) -> Iterator[str]:
    """Yield a line on each class's images and prompts, then the number of images in each round.

    each: first yield a line for each image of the first round, with its seed.
    """
    plans = list(planned_batches(resolve(config, comm)))
    if not plans:
        yield (
            f"generation.plan={config.generation.plan} depends on each round's cohort, "
            "so its prompts are not known in advance"
        )
        return
    names = datasets.describe(config.data).classes
    if each:
        for batch in plans[0]:
            for label, seed, prompt in zip(batch.label, batch.seed, batch.prompt):
                yield f"{names[label]:<16} {prompt}    (seed {seed})"
        yield ""
    yield from _prompts_of_classes(plans, names)
    yield ""
    yield from _images_of_rounds(plans)


def _prompts_of_classes(plans: Sequence[Sequence[Batch]], names: Sequence[str]) -> Iterator[str]:
    """Yield a table of at most WIDTH columns: images, distinct prompts and examples of each class."""
    found: dict[int, Counter[str]] = {}
    for batches in plans:
        for batch in batches:
            for label, prompt in zip(batch.label, batch.prompt):
                found.setdefault(label, Counter())[prompt] += 1
    width = max(len("class"), *map(len, names))
    yield f"{'class':<{width}}  images  prompts  most frequent, with the number of images"
    for label, counts in sorted(found.items()):
        row = f"{names[label]:<{width}}  {counts.total():6d}  {len(counts):7d}  "
        yield from textwrap.wrap(
            "; ".join(f"{prompt} ({count})" for prompt, count in counts.most_common(MAX_EXAMPLES)),
            WIDTH,
            initial_indent=row,
            subsequent_indent=" " * len(row),
        )


def _images_of_rounds(plans: Sequence[Sequence[Batch]]) -> Iterator[str]:
    """Yield a line for each group of consecutive rounds with equal numbers of images."""
    counts = [Counter(label for batch in batches for label in batch.label) for batches in plans]
    numbers = [
        (each.total(), len(each), min(each.values(), default=0), max(each.values(), default=0))
        for each in counts
    ]
    first = 1
    for (total, classes, least, most), group in itertools.groupby(numbers):
        last = first + len(list(group)) - 1
        rounds = f"round {first}" if first == last else f"rounds {first} to {last}, each"
        first = last + 1
        if not total:
            yield f"{rounds}: no images"
            continue
        of_each = f"{least}" if least == most else f"{least} to {most}"
        yield f"{rounds}: {total} images of {classes} classes, {of_each} of each"


def planned_batches(config: Config) -> Iterator[list[Batch]]:
    """Yield the batches of each round, up to the first whose plan depends on its cohort. config: resolved."""
    server = planning_server(config, load_labels_and_divide(config))
    return server.images.batches_from(server.state, 0)
