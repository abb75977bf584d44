"""What a round would take each client if it were chosen: what selection and cost-aware policies ask the world."""

from dataclasses import dataclass

import numpy as np

from genfl_mpi.edge import channel
from genfl_mpi.edge.hardware import Devices, computing_joules, computing_seconds
from genfl_mpi.edge.rounds import making, waiting


@dataclass(frozen=True)
class Forecast:
    """float64 (clients,) each: seconds and joules of the round with an equal share of the bandwidth and nothing lost, battery
    in J when the run began, and charge, what is left of it. augmented_joules: of the server's generating and training."""

    seconds: np.ndarray
    joules: np.ndarray
    battery: np.ndarray
    charge: np.ndarray
    augmented_joules: float = 0.0


def forecast(world, devices, round, cohort, work, spent, clients=slice(None)):
    """The `Forecast` of round `round`, of which the first is 0, for a cohort of so many.

    devices: of all clients; work: the `Work` of each one that is asked for, `clients`, by default all; spent: float64 (N,),
    joules of all in the rounds before. The channel is known before the choice; what is sent arrives at each client's own rate.
    """
    settings, noise, have = (
        world.channel,
        channel.noise(world.channel),
        Devices(*(array[clients] for array in devices)),
    )
    up, down = (channel.gains(world, len(spent), round, way)[clients] for way in (channel.UP, channel.DOWN))
    band, watts = settings.bandwidth_mhz * 1e6, world.server.transmit_watts
    part = 1 if work.all_receive else cohort
    receive = 8 * work.weights_bytes / channel.rate(
        band, watts, down, noise
    ) + 8 * work.received_bytes / channel.rate(band / part, watts / part, down, noise)
    send = 8 * work.weights_bytes / channel.rate(band / cohort, have.power, up, noise)
    make, cycles = making(world.hardware, work), work.flops / world.hardware.flops_per_cycle
    joules = (
        world.hardware.receive_watts * receive
        + computing_joules(cycles, have.frequency, world.hardware.capacitance)
        + have.power * send
        + world.hardware.accelerator_watts * make
    )
    seconds = waiting(world.server, work) + receive + make + computing_seconds(cycles, have.frequency) + send
    return Forecast(seconds, joules, have.battery, have.battery - spent[clients])
