"""Draw the clients' hardware, and compute what training costs on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genfl_mpi.util import streams
from genfl_mpi.util.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from genfl_mpi.config.world import World


class ClientHardware(NamedTuple):
    """Hardware of all clients, float64 (clients,): clock in Hz, transmit power in W, battery in J."""

    frequency: np.ndarray
    power: np.ndarray
    battery: np.ndarray


def draw_hardware(world: World, clients: int) -> ClientHardware:
    """Draw the hardware of `clients` clients. Raises UserError if the world has fewer."""
    if world.clients is not None and world.clients < clients:
        raise UserError(
            f"the world has {world.clients} clients, but the run has {clients}; "
            "remove the world's `clients`, or raise it"
        )
    settings = world.hardware

    def uniform(ends: Sequence[float] | np.ndarray, key: int) -> np.ndarray:
        return streams.generator(world.seed, "device", key).uniform(ends[0], ends[1], clients)

    return ClientHardware(
        1e9 * uniform(settings.frequency_ghz, 0),
        np.exp(uniform(np.log(settings.transmit_watts), 1)),
        1e3 * uniform(settings.battery_kj, 2),
    )


def computing_seconds(cycles: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Return t = E C D / f, s. cycles: E C D (epochs, cycles per sample, samples). frequency: Hz."""
    return cycles / frequency


def computing_joules(cycles: np.ndarray, frequency: np.ndarray, capacitance: float) -> np.ndarray:
    """Return e = kappa E C D f^2, J; kappa: switched capacitance (Burd and Brodersen 1996)."""
    return capacitance * cycles * frequency**2


def slowest_frequency(
    cycles: np.ndarray, seconds: np.ndarray, lowest: float, highest: np.ndarray
) -> np.ndarray:
    """Return the clock, Hz, that finishes `cycles` within `seconds` at the least energy.

    Energy grows with the clock, so it is f* = E C D / seconds, clipped to `lowest` and `highest`, and
    `highest` if no time is left.
    """
    wanted = np.divide(cycles, seconds, out=np.full(np.shape(cycles), np.inf), where=np.asarray(seconds) > 0)
    return np.clip(wanted, np.minimum(lowest, highest), highest)
