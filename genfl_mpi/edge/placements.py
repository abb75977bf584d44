"""Where images are generated, and what that costs: placements P0 to P5 on the trace of one run.

The same cohorts train on the same samples in all of them; what another placement would change in the learning is not priced here.
"""

from dataclasses import dataclass, replace

import numpy as np

from genfl_mpi.edge import channel, hardware
from genfl_mpi.edge.attendance import attend
from genfl_mpi.edge.rounds import Work, image_joules, meet, price
from genfl_mpi.edge.trace import image_bytes

PLACEMENTS = {
    "P0": "no images",
    "P1": "the server generates and trains an augmented model (GenFL)",
    "P2": "the server generates and sends the images to the clients",
    "P3": "clients generate what their labels lack",
    "P4": "a helper generates for the server",
    "P5": "what its labels lack each client is sent, or generates, whichever takes it less energy",
}


@dataclass(frozen=True)
class Bill:
    """seconds: float64 (rounds,). joules: float64 (rounds,) by entity (clients, server, helper). bytes: float64 (rounds,) by
    way (down, up, wire). client_joules: float64 (N,), of each client in all rounds. prices: the `Price` of each round. status: of
    each round, what became of its clients, as `attend` has it; empty in a world that does not act."""

    seconds: np.ndarray
    joules: dict
    bytes: dict
    client_joules: np.ndarray
    prices: list
    status: list


def cohorts(trace, world):
    """What the clients of each round have, and how they are heard: a list of `Cohort`, the same for all placements. Raises
    UserError."""
    owned = hardware.draw(world, trace.clients)
    return [meet(world, owned, round, clients) for round, clients in enumerate(trace.cohorts)]


def bill(trace, world, met, placement=None):
    """What all rounds of a `Trace` take in a world with a placement of AIGC, by default its own. A run that generated nothing has
    P1 = P0.

    met: the `cohorts` of the trace in this world. Raises UserError.
    """
    holdings = Holdings(trace.clients, world)
    prices, status, per_client = [], [], np.zeros(trace.clients)
    battery = hardware.draw(world, trace.clients).battery
    for round, cohort in enumerate(met):
        work = asked(trace, world, round, holdings, placement, cohort.down)
        prices.append(price(world, cohort, work))
        if world.enforced:
            heard, prices[-1] = attend(world, battery, round, prices[-1], per_client)
            status.append(heard)
        holdings.add(cohort.clients, work, prices[-1].parts)
        per_client[cohort.clients] += sum(prices[-1].client_joules.values())
    gpu = [
        {name: one.server_joules[name] for name in one.server_joules if name != "helper"} for one in prices
    ]
    return Bill(
        np.array([one.seconds for one in prices]),
        {
            "clients": np.array(
                [sum(joules.sum() for joules in one.client_joules.values()) for one in prices]
            ),
            "server": np.array([sum(joules.values()) for joules in gpu]),
            "helper": np.array([one.server_joules["helper"] for one in prices]),
        },
        {way: np.array([one.bytes[way] for one in prices]) for way in ("down", "up", "wire")},
        per_client,
        prices,
        status,
    )


class Holdings:
    """What clients hold of the rounds before. images: float64 (N,), of the pool or of their own making; generator: bool (N,),
    whether each has that."""

    def __init__(self, clients, world):
        self.images, self.generator = np.zeros(clients), np.full(clients, world.images.installed)

    def add(self, clients, work, parts=None):
        """A round is over in which `clients`, int (K,), had this `Work`, and did these parts of their phases, as a `Price` has
        them, or else all. Who was stopped holds the images that were whole by then, and the generator if all of it had come."""
        received, made = (parts[phase] if parts else np.ones(len(clients)) for phase in ("receive", "make"))
        self.images[clients] += _whole(work.received_images, received) + _whole(work.made_images, made)
        self.generator[clients] |= work.fetches & (received == 1)


def _whole(images, part):
    """How many of the images there are when a part of them is, float64 (K,). All of them may be a fraction, in a `scaled`
    trace."""
    return np.where(part < 1, np.floor(images * part), images)


def asked(trace, world, round, holdings, placement=None, down=None):
    """The `Work` of a round of a `Trace`, with a placement, by default its own. holdings: `Holdings`, which stay as they are.
    down: float64 (K,), gains of the cohort's channels, for P5. The round's cohort may be any index of the N clients."""
    work = Work(
        trace.sample_flops * trace.epochs[round] * trace.samples[round],
        trace.weights_bytes,
        value=trace.value[trace.cohorts[round]],
        image_flops=trace.image_flops,
    )
    return replace(work, **WORK[placement or trace.placement](trace, world, round, holdings, down))


def _none(trace, world, round, holdings, down):
    return {}


def _server(trace, world, round, holdings, down):
    return {"server_images": trace.new_images[round], "augment_flops": _augment_flops(trace, round)}


def _sent(trace, world, round, holdings, down):
    """Each client of the cohort is sent the images that it does not have yet, and trains on all of them."""
    lacking = trace.pool[round] - holdings.images[trace.cohorts[round]]
    return {
        "server_images": trace.new_images[round],
        "they_wait": True,
        "received_images": lacking,
        "received_bytes": lacking * image_bytes(trace, world.images),
        "all_receive": world.images.delivery == "broadcast",
        "flops": _flops_with(trace, round, trace.pool[round]),
    }


def _at_clients(trace, world, round, holdings, down):
    """Each client of the cohort generates its share of the pool, the labels that it lacks, and trains on them too."""
    clients = trace.cohorts[round]
    wanted = np.ceil(trace.pool[round] * trace.missing[clients]) if trace.made is None else trace.made[round]
    made = wanted - holdings.images[clients]
    fetches = ~holdings.generator[clients] & (made > 0)
    return {
        "made_images": made,
        "fetches": fetches,
        "received_bytes": fetches * trace.generator_bytes,
        "flops": _flops_with(trace, round, wanted),
    }


def _helper(trace, world, round, holdings, down):
    images = trace.new_images[round]
    return {
        "helper_images": images,
        "helper_bytes": images * image_bytes(trace, world.images),
        "augment_flops": _augment_flops(trace, round),
    }


def _hybrid(trace, world, round, holdings, down):
    """As P3, but a client that is sent what it lacks with less energy than making it takes is sent it by the server, which
    generates as in P1; what a fetched generator would save later is not foreseen."""
    clients, part = trace.cohorts[round], max(len(trace.cohorts[round]), 1)
    share = np.ceil(trace.pool[round] * trace.missing[clients])
    wanted = share - holdings.images[clients]
    noise, size = channel.noise(world.channel), image_bytes(trace, world.images)
    rate = channel.rate(
        world.channel.bandwidth_mhz * 1e6 / part, world.server.transmit_watts / part, down, noise
    )
    joules_a_byte = 8 * world.hardware.receive_watts / rate
    fetches = ~holdings.generator[clients]
    sent = (wanted > 0) & (
        wanted * size * joules_a_byte
        <= wanted * image_joules(world.hardware, trace.image_flops)
        + fetches * trace.generator_bytes * joules_a_byte
    )
    fetches &= ~sent & (wanted > 0)
    return {
        "server_images": trace.new_images[round],
        "they_wait": bool(sent.any()),
        "made_images": wanted * ~sent,
        "received_images": wanted * sent,
        "fetches": fetches,
        "received_bytes": wanted * sent * size + fetches * trace.generator_bytes,
        "flops": _flops_with(trace, round, share),
    }


def _augment_flops(trace, round):
    return trace.sample_flops * trace.augmented_epochs * trace.pool[round]


def _flops_with(trace, round, images):
    return trace.sample_flops * trace.epochs[round] * (trace.samples[round] + images)


WORK = {"P0": _none, "P1": _server, "P2": _sent, "P3": _at_clients, "P4": _helper, "P5": _hybrid}


def scaled(trace, images=1.0, size=1.0):
    """The trace with `images` times as many images, each `size` times as large to send."""
    return replace(
        trace,
        new_images=trace.new_images * images,
        pool=trace.pool * images,
        image_size=trace.image_size * size,
    )
