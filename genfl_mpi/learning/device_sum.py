"""The exact sum on a GPU, so that clients' weights need not leave it."""

from __future__ import annotations

import torch

from genfl_mpi.learning.weights import FRACTION_BITS, check_summand

BLOCK = 1 << 22  # weights processed at a time: 32 MiB as float64


class DeviceSum:
    """`ExactSum` on any device. The sum has the same bits; the norm of an update may differ in its last bits.

    units: int64 (size,), on any device, the accumulator; fraction_bits: bits of the fraction, a unit is
    2**-fraction_bits.
    """

    def __init__(self, units: torch.Tensor, fraction_bits: int = FRACTION_BITS):
        self.units, self.fraction_bits = units, fraction_bits

    def add(
        self, rho: float, weights: torch.Tensor, reference: torch.Tensor | None = None
    ) -> tuple[float, float]:
        """Do as `ExactSum.add`, with weights and reference on any device.

        Synchronizes with the device once, for the two numbers that it returns.
        """
        weights = weights.to(self.units.device)
        square = torch.zeros((), dtype=torch.float64, device=weights.device)
        if reference is not None:
            for one, other in zip(
                weights[: len(reference)].split(BLOCK), reference.to(weights.device).split(BLOCK)
            ):
                square += (other.double() - one.double()).square().sum()
        low, high, squared = torch.stack([*(end.double() for end in torch.aminmax(weights)), square]).tolist()
        largest = check_summand(rho, max(high, -low), self.fraction_bits)
        for units, one in zip(self.units.split(BLOCK), weights.split(BLOCK)):
            # The float64 product and its rounding to an integer depend on this client alone; integer sums
            # have no order.
            units += one.double().mul_(rho * 2.0**self.fraction_bits).round_().long()
        return largest, squared**0.5

    def store(self, start: int, values: torch.Tensor) -> None:
        """Do as `ExactSum.store`."""
        check_summand(1.0, values.abs().max().item(), self.fraction_bits)
        units = (values * 2.0**self.fraction_bits).round_().long()
        self.units[start : start + len(values)].copy_(units)
