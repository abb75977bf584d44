"""What a round would take each client if it were chosen: what selection and cost-aware policies ask the world."""

from dataclasses import dataclass

import numpy as np

from genfl_mpi.edge import channel
from genfl_mpi.edge.devices import computing_joules, computing_seconds


@dataclass(frozen=True)
class Forecast:
    """float64 (clients,) each: seconds and joules of the round with an equal share of the bandwidth and nothing lost, battery
    in J when the run began, and charge, what is left of it. augmented_joules: of the server's generating and training."""

    seconds: np.ndarray
    joules: np.ndarray
    battery: np.ndarray
    charge: np.ndarray
    augmented_joules: float = 0.0


def forecast(world, devices, round, cohort, flops, weights_bytes, spent):
    """The `Forecast` of round `round`, of which the first is 0, for a cohort of so many.

    devices: of all clients; flops: float64 (clients,), of each one's local training; weights_bytes: of a model; spent:
    float64 (clients,), joules of the rounds before. The channel is known before the choice; the weights arrive at each client's own rate.
    """
    clients, settings, noise = len(flops), world.channel, channel.noise(world.channel)
    up, down = (channel.gains(world, clients, round, way) for way in (channel.UP, channel.DOWN))
    band = settings.bandwidth_mhz * 1e6
    receive = 8 * weights_bytes / channel.rate(band, world.server.transmit_watts, down, noise)
    send = 8 * weights_bytes / channel.rate(band / cohort, devices.power, up, noise)
    cycles = flops / world.devices.flops_per_cycle
    joules = (world.devices.receive_watts * receive + computing_joules(cycles, devices.frequency, world.devices.capacitance)
              + devices.power * send)
    seconds = receive + computing_seconds(cycles, devices.frequency) + send
    return Forecast(seconds, joules, devices.battery, devices.battery - spent)
