"""Price a round of tiers: at the edge servers, and in every k2-th round at the cloud.

The edge servers work at the same time, each with its own clients and an equal part of the band. The round
takes as long as the slowest; then, if the cloud averages, their models travel there by wire and the new one
back:

    T = max_c T_c    or    max(max_c T_c + t_link, t_generate + t_augment - T_before) + t_aggregate + t_link

T_c: as in `rounds`. The cloud generates and trains its augmented model from the last average on, beside the
edge rounds: T_before are those since then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.edge import cells
from genfl_mpi.edge.rounds import Cohort, Price, Work, image_seconds, price_round

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genfl_mpi.config.world import World
    from genfl_mpi.edge.trace import Trace


def price_edge_round(
    world: World, cohort: Cohort, work: Work, trace: Trace, round: int, earlier: Sequence[Price]
) -> Price:
    """Return the `Price` of a round of a trace with tiers.

    work: of `placements.required_work`, with the cloud's images. earlier: of all rounds before. Seconds of
    servers are those of the slowest edge server and of the cloud, joules and bytes those of all.
    """
    assert trace.tiers
    of_client = cells.nearest(world, trace.clients)[0][cohort.clients]
    band = world.channel.bandwidth_mhz / world.cells
    local = world.model_copy(
        update={
            "server": world.edge,
            "channel": world.channel.model_copy(update={"bandwidth_mhz": band}),
        }
    )
    found = []
    for cell in range(world.cells):
        inside = of_client == cell
        its = _edge_work(work, trace, round, cell, inside)
        if inside.any() or its.server_images:
            members = Cohort(*(column[inside] for column in cohort))
            found.append((inside, price_round(local, members, its)))
    total = _merge(cohort, found)
    every = trace.tiers.cloud_every
    if (round + 1) % every:
        return total
    before = sum(one.seconds for one in earlier[round + 1 - every : round])
    return _add_cloud(world, total, _cloud_work(work, trace), before)


def _edge_work(work: Work, trace: Trace, round: int, cell: int, inside: np.ndarray) -> Work:
    """Return the part of a round's work that a cell does. inside: bool (K,), its members of the cohort."""
    images, augment, tiers = 0.0, 0.0, trace.tiers
    assert tiers
    if tiers.new_images is not None and tiers.pool is not None:
        images = float(tiers.new_images[round, cell])
        # Without a participant there is no model to mix with.
        augment = trace.sample_flops * trace.augmented_epochs * tiers.pool[round, cell] * inside.any()
    each = np.ones(len(inside))
    return replace(
        work,
        flops=(work.flops * each)[inside],
        value=(work.value * each)[inside],
        server_images=images,
        augment_flops=float(augment),
    )


def _cloud_work(work: Work, trace: Trace) -> Work:
    """Return the part of a round's work that the cloud does."""
    assert trace.tiers
    if trace.tiers.new_images is None:
        return work
    return replace(work, server_images=0.0, augment_flops=0.0)


def _merge(cohort: Cohort, found: Sequence[tuple[np.ndarray, Price]]) -> Price:
    """Return the `Price` of cells that work at the same time. found: their members, bool (K,), and prices."""
    prices = [price for _, price in found]
    first, count = prices[0], len(cohort.clients)

    def joined(columns: Sequence[np.ndarray], dtype: str = "f8") -> np.ndarray:
        whole: np.ndarray = np.zeros(count, dtype)
        for (inside, _), column in zip(found, columns):
            whole[inside] = column
        return whole

    return Price(
        clients=cohort.clients,
        seconds=max(price.seconds for price in prices),
        client_seconds={
            phase: joined([price.client_seconds[phase] for price in prices]) for phase in first.client_seconds
        },
        client_joules={
            phase: joined([price.client_joules[phase] for price in prices]) for phase in first.client_joules
        },
        server_seconds={
            phase: max(price.server_seconds[phase] for price in prices) for phase in first.server_seconds
        },
        server_joules={
            phase: sum(price.server_joules[phase] for price in prices) for phase in first.server_joules
        },
        bytes={link: sum(price.bytes[link] for price in prices) for link in first.bytes},
        parts=dict.fromkeys(first.client_seconds, np.ones(count)),
        sent=joined([price.sent for price in prices]),
        lost=joined([price.lost for price in prices], "?"),
    )


def _add_cloud(world: World, price: Price, work: Work, before: float) -> Price:
    """Add an average at the cloud to the `Price` of the edge servers' round. before: T_before, s."""
    server, count = world.server, world.cells
    flops_per_second = server.tflops * 1e12
    busy = {
        "generate": work.server_images * image_seconds(server, work.image_flops),
        "augment": work.augment_flops / flops_per_second,
        "aggregate": 2 * (count + 1) * work.weights_bytes / 4 / flops_per_second,
    }
    link = 8 * work.weights_bytes / (world.edge.link_mbps * 1e6)
    arrived = max(price.seconds + link, busy["generate"] + busy["augment"] - before)
    return replace(
        price,
        seconds=arrived + busy["aggregate"] + link,
        server_seconds=price.server_seconds
        | {phase: price.server_seconds[phase] + seconds for phase, seconds in busy.items()}
        | {"link": 2 * link},
        server_joules=price.server_joules
        | {phase: price.server_joules[phase] + server.watts * seconds for phase, seconds in busy.items()},
        bytes=price.bytes | {"wire": price.bytes["wire"] + 2 * count * work.weights_bytes},
    )
