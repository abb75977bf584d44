"""The exact sum on a GPU, so that no client's weights leave it."""

import torch

from genfl_mpi.learning.weights import FRACTION_BITS, check_size

BLOCK = 1 << 22  # weights that are taken in at a time: 32 MiB as float64


class DeviceSum:
    """As `ExactSum`, with the same bits, but for the length of an update, whose last bits may differ.

    units: int64 (size,), on any device, where the sum is kept; fraction_bits: of a unit.
    """

    def __init__(self, units, fraction_bits=FRACTION_BITS):
        self.units, self.fraction_bits = units, fraction_bits

    def add(self, rho, weights, since=None):
        """As `ExactSum.add`; weights and since on any device. Waits once, for the two numbers that it returns."""
        weights = weights.to(self.units.device)
        square = torch.zeros((), dtype=torch.float64, device=weights.device)
        if since is not None:
            for one, other in zip(weights[: len(since)].split(BLOCK), since.to(weights.device).split(BLOCK)):
                square += (other.double() - one.double()).square().sum()
        low, high, square = torch.stack(
            [*(bound.double() for bound in torch.aminmax(weights)), square]
        ).tolist()
        largest = check_size(rho, max(high, -low), self.fraction_bits)
        for units, one in zip(self.units.split(BLOCK), weights.split(BLOCK)):
            # A product of two float64 and its rounding to an integer depend on this client alone.
            units += one.double().mul_(rho * 2.0**self.fraction_bits).round_().long()
        return largest, square**0.5
