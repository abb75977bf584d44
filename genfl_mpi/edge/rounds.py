"""What one round takes in a world: seconds and joules of each client, of the server and of a helper, and bytes on the air.

T_round = max(max_n(t_down + t_make + t_compute + t_up), t_generate + t_augment) + t_aggregate
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from genfl_mpi.edge import channel
from genfl_mpi.edge.bandwidth import ALLOCATIONS, Uplink, seconds
from genfl_mpi.edge.hardware import computing_joules, computing_seconds, slowest_frequency
from genfl_mpi.util import streams


@dataclass(frozen=True)
class Work:
    """What a round asks of a cohort and its server. What is each client's is float64 (K,), or a number for all.

    flops: of each client's local training. weights_bytes: of a model, down and up. received_bytes: of images, or a generator,
    sent to each client; all_receive: whether these are broadcast, which takes as long as the largest does at the worst
    receiver; received_images: how many images these are; fetches: bool, whether a generator is among them. made_images: that
    each makes itself. value: of each one's data, in [0, 1]. server_images: that the server makes in this round; they_wait:
    whether the clients have to wait for these. augment_flops: of training the augmented model. helper_images, helper_bytes:
    made by the helper, and sent to the server by wire. image_flops: of making an image.
    """

    flops: np.ndarray | float = 0.0
    weights_bytes: float = 0.0
    received_bytes: np.ndarray | float = 0.0
    all_receive: bool = False
    received_images: np.ndarray | float = 0.0
    fetches: np.ndarray | bool = False
    made_images: np.ndarray | float = 0.0
    value: np.ndarray | float = 1.0
    server_images: float = 0.0
    they_wait: bool = False
    augment_flops: float = 0.0
    helper_images: float = 0.0
    helper_bytes: float = 0.0
    image_flops: float = 0.0


@dataclass(frozen=True)
class Price:
    """clients: int (K,). seconds: of the round. client_seconds, client_joules: float64 (K,) by phase (wait, down, receive,
    make, compute, up). server_seconds, server_joules: by phase (send, generate, augment, aggregate, link, helper). bytes: by
    way (down, up, wire). parts: float64 (K,) by phase, how much of it each client did. sent: float64 (K,), bytes that each
    client sent. lost: bool (K,), whose message would not have arrived the last time either."""

    clients: np.ndarray
    seconds: float
    client_seconds: dict
    client_joules: dict
    server_seconds: dict
    server_joules: dict
    bytes: dict
    parts: dict
    sent: np.ndarray
    lost: np.ndarray


class Cohort(NamedTuple):
    """What the clients of a round have, and how they are heard: clients: int (K,); else float64 (K,): power in W, clock in
    Hz, gains of the channel up and down, and luck, uniform in [0, 1), in being heard at once."""

    clients: np.ndarray
    power: np.ndarray
    frequency: np.ndarray
    up: np.ndarray
    down: np.ndarray
    luck: np.ndarray


def meet(world, devices, round, clients):
    """The `Cohort` of `clients`, int (K,), in round `round`, of which the first is 0. devices: of all clients."""
    count = len(devices.power)
    up, down = (channel.gains(world, count, round, way)[clients] for way in (channel.UP, channel.DOWN))
    luck = streams.generator(world.seed, "outage", round).random(count)[clients]
    return Cohort(clients, devices.power[clients], devices.frequency[clients], up, down, luck)


def image_seconds(gpu, flops):
    """Time of an image of `flops` on a GPU (world.server or world.helper): measured, or from its speed."""
    return gpu.image_seconds or flops / (gpu.tflops * 1e12)


def waiting(server, work):
    """Seconds for which the clients wait until the server has made images. server: world.server."""
    return work.server_images * image_seconds(server, work.image_flops) if work.they_wait else 0.0


def making(settings, work):
    """Seconds in which each client makes its images. settings: world.hardware."""
    return work.made_images * work.image_flops / (settings.accelerator_tflops * 1e12)


def image_joules(settings, flops):
    """What an image of `flops` takes a client. settings: world.hardware."""
    return flops / (settings.accelerator_tflops * 1e12) * settings.accelerator_watts


def price(world, cohort, work):
    """The `Price` of `work` for a `Cohort`. Raises UserError."""
    settings, server, power, frequency = world.channel, world.server, cohort.power, cohort.frequency
    noise, band, count = channel.noise(settings), settings.bandwidth_mhz * 1e6, len(cohort.clients)
    each = np.ones(count)

    # The server's own path, and the helper's in its place.
    generate = work.server_images * image_seconds(server, work.image_flops)
    augment = work.augment_flops / (server.tflops * 1e12)
    helper = work.helper_images * image_seconds(world.helper, work.image_flops)
    link = 8 * work.helper_bytes / (world.helper.link_mbps * 1e6)
    aggregate = (
        2 * (count + 1) * work.weights_bytes / 4 / (server.tflops * 1e12)
    )  # a product and a sum for each weight

    # Down: the weights to all at the rate of the worst receiver, then what else each is sent.
    wait = waiting(server, work) * each
    worst = (
        channel.rate(band, server.transmit_watts, cohort.down.min(initial=np.inf), noise) if count else np.inf
    )
    broadcast = 8 * work.weights_bytes / worst * each
    received = work.received_bytes * each
    if work.all_receive:
        receive = 8 * received.max(initial=0) / worst * each
        sent, sending = received.max(initial=0), receive.max(initial=0)
    else:
        receive = (
            8
            * received
            / channel.rate(band / max(count, 1), server.transmit_watts / max(count, 1), cohort.down, noise)
        )
        sent, sending = received.sum(), receive.max(initial=0)

    # The clients make images, train, and send their weights.
    make = making(world.hardware, work) * each
    cycles = work.flops / world.hardware.flops_per_cycle * each
    compute = computing_seconds(cycles, frequency)
    ready = wait + broadcast + receive + make + compute
    upload, tries, lost = np.zeros(count), each, each < 1
    if count:
        reach = power * cohort.up / noise
        uplink = Uplink(
            8 * work.weights_bytes, ready, power, reach, band, world.deadline_s, work.value * each
        )
        bandwidth = ALLOCATIONS[settings.allocation](uplink)
        error = channel.packet_error(bandwidth, power, cohort.up, noise, settings.waterfall)
        tries = channel.transmissions(cohort.luck, error, settings.max_transmissions)
        lost = channel.never_arrives(cohort.luck, error, settings.max_transmissions)
        upload = seconds(uplink, bandwidth) * tries
    if settings.allocation == "least_energy":  # what the deadline leaves, a slower clock uses
        left = world.deadline_s - upload - (ready - compute)
        frequency = slowest_frequency(cycles, left, world.hardware.min_frequency_ghz * 1e9, frequency)
        compute = computing_seconds(cycles, frequency)
    done = wait + broadcast + receive + make + compute + upload

    client_seconds = {
        "wait": wait,
        "down": broadcast,
        "receive": receive,
        "make": make,
        "compute": compute,
        "up": upload,
    }
    return Price(
        clients=cohort.clients,
        seconds=_whole(done.max(initial=0), generate, augment, helper, link, aggregate),
        client_seconds=client_seconds,
        client_joules={
            "wait": 0 * each,
            "down": world.hardware.receive_watts * broadcast,
            "receive": world.hardware.receive_watts * receive,
            "make": world.hardware.accelerator_watts * make,
            "compute": computing_joules(cycles, frequency, world.hardware.capacitance),
            "up": power * upload,
        },
        server_seconds={
            "send": broadcast.max(initial=0) + sending,
            "generate": generate,
            "augment": augment,
            "aggregate": aggregate,
            "helper": helper,
            "link": link,
        },
        server_joules={
            "send": server.transmit_watts * (broadcast.max(initial=0) + sending),
            "generate": server.watts * generate,
            "augment": server.watts * augment,
            "aggregate": server.watts * aggregate,
            "helper": world.helper.watts * helper,
            "link": 0.0,
        },
        bytes={
            "down": work.weights_bytes * (count > 0) + sent,
            "up": work.weights_bytes * tries.sum(),
            "wire": work.helper_bytes,
        },
        parts=dict.fromkeys(client_seconds, each),
        sent=work.weights_bytes * tries,
        lost=lost,
    )


def until(price, parts, waited):
    """The `Price` of a round in which each client did these parts of its phases, float64 (phases, K) in [0, 1], and the server
    waited so many seconds for the clients."""
    phases = dict(zip(price.client_seconds, parts))
    server, sent = price.server_seconds, price.sent * phases["up"]
    return replace(
        price,
        parts=phases,
        sent=sent,
        bytes=price.bytes | {"up": sent.sum()},
        seconds=_whole(
            waited, *(server[phase] for phase in ("generate", "augment", "helper", "link", "aggregate"))
        ),
        client_seconds={phase: seconds * phases[phase] for phase, seconds in price.client_seconds.items()},
        client_joules={phase: joules * phases[phase] for phase, joules in price.client_joules.items()},
    )


def _whole(waited, generate, augment, helper, link, aggregate):
    """T_round, from the time that the clients take and those of the server's phases."""
    return max(waited, generate + augment, helper + link + augment) + aggregate
