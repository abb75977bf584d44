"""The clients' hardware: what each has, and what computing costs it."""

from typing import NamedTuple

import numpy as np

from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError


class Devices(NamedTuple):
    """float64 (clients,) each: clock in Hz, power of the transmitter in W, charge of the battery in J."""

    frequency: np.ndarray
    power: np.ndarray
    battery: np.ndarray


def draw(world, clients):
    """The `Devices` of a world. Raises UserError if it has fewer than `clients`."""
    if world.clients is not None and world.clients < clients:
        raise UserError(
            f"the world has {world.clients} clients, and the run had {clients}; leave its `clients` out, or raise it"
        )
    settings = world.hardware

    def uniform(ends, which):
        return streams.generator(world.seed, "device", which).uniform(*ends, clients)

    return Devices(
        1e9 * uniform(settings.frequency_ghz, 0),
        np.exp(uniform(np.log(settings.transmit_watts), 1)),
        1e3 * uniform(settings.battery_kj, 2),
    )


def computing_seconds(cycles, frequency):
    """t = E C D / f, where `cycles` is E C D: epochs, cycles a sample, samples."""
    return cycles / frequency


def computing_joules(cycles, frequency, capacitance):
    """e = kappa E C D f^2, kappa being the effective switched capacitance (Burd and Brodersen 1996)."""
    return capacitance * cycles * frequency**2


def slowest_frequency(cycles, seconds, lowest, highest):
    """The clock, in Hz, that makes `cycles` within `seconds` for the least energy, which grows with it: f* = E C D / seconds,
    between `lowest` and `highest`. With no time left it is the highest."""
    wanted = np.divide(cycles, seconds, out=np.full(np.shape(cycles), np.inf), where=np.asarray(seconds) > 0)
    return np.clip(wanted, np.minimum(lowest, highest), highest)
