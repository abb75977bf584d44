"""Forecast what a round would cost each client if it were selected, for selection and cost-aware policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from genfl_mpi.edge import channel, road
from genfl_mpi.edge.hardware import ClientHardware, computing_joules, computing_seconds
from genfl_mpi.edge.rounds import Work, generation_seconds, waiting_seconds

if TYPE_CHECKING:
    from genfl_mpi.config.world import World


@dataclass(frozen=True)
class Forecast:
    """What a round would cost each client with an equal share of the bandwidth, without losses.

    All but `augmented_joules` are float64 (clients,).

    seconds, joules: of the round. battery: charge when the run began, J. charge: what is left of it, J.
    augmented_joules: energy that the server spends on generation and augmented training. sojourn: how long
    each client stays in its cell, s, infinite without a road.
    """

    seconds: np.ndarray
    joules: np.ndarray
    battery: np.ndarray
    charge: np.ndarray
    augmented_joules: float = 0.0
    sojourn: np.ndarray | None = None


def forecast(
    world: World,
    devices: ClientHardware,
    round: int,
    cohort: int,
    work: Work,
    spent: np.ndarray,
    clients: slice | np.ndarray = slice(None),
) -> Forecast:
    """Return the `Forecast` of a round, counted from 0, for a cohort of `cohort` clients.

    devices: hardware of all clients. work: the `Work` of each of `clients`, by default all. spent: float64
    (N,), energy that each client spent in earlier rounds, J. The channel is known before the selection. Data
    arrives at each client's own rate.
    """
    settings, noise = world.channel, channel.noise(world.channel)
    hardware = ClientHardware(*(array[clients] for array in devices))
    up, down = (channel.gains(world, len(spent), round, way)[clients] for way in (channel.UP, channel.DOWN))
    band, watts = settings.bandwidth_mhz * 1e6, world.server.transmit_watts
    part = 1 if work.broadcast_images else cohort
    down_rate = channel.rate(band, watts, down, noise)
    image_rate = channel.rate(band / part, watts / part, down, noise)
    receive = 8 * work.weights_bytes / down_rate + 8 * work.received_bytes / image_rate
    if work.protocol_bytes:
        protocol_rate = channel.rate(band / cohort, watts / cohort, down, noise)
        receive = receive + 8 * work.protocol_bytes / protocol_rate
    send = 8 * work.sent_bytes / channel.rate(band / cohort, hardware.power, up, noise)
    make, cycles = (
        generation_seconds(world.hardware, work),
        np.asarray(work.flops) / world.hardware.flops_per_cycle,
    )
    joules = (
        world.hardware.receive_watts * receive
        + computing_joules(cycles, hardware.frequency, world.hardware.capacitance)
        + hardware.power * send
        + world.hardware.accelerator_watts * make
    )
    compute = computing_seconds(cycles, hardware.frequency)
    seconds = waiting_seconds(world.server, work) + receive + make + compute + send
    stay = road.sojourn(world, len(spent), round)[clients]
    return Forecast(seconds, joules, hardware.battery, hardware.battery - spent[clients], sojourn=stay)
